"""Layers that only change the shape."""

from __future__ import annotations

import math

from mpidl.backend import Array
from mpidl.nn.layer import Backward, Layer, Shape


class Flatten(Layer):
    """y (n, product of the shape) = x, without a copy."""

    kind = "flatten"

    def output_shape(self, shape: Shape) -> Shape:
        return (math.prod(shape),)

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        shape = x.shape
        return x.reshape(shape[0], math.prod(shape[1:])), lambda dy: dy.reshape(shape)
