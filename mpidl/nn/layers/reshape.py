"""Layers that only change the shape."""

from __future__ import annotations

import math

from mpidl.backend import Array
from mpidl.nn.layer import Backward, Layer, Shape


class Reshape(Layer):
    """y (n, *shape) = x, without a copy.

    Args:
        shape: Shape of an output sample.
    """

    kind = "reshape"
    capturable = True

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def output_shape(self, shape: Shape) -> Shape:
        if math.prod(shape) != math.prod(self._target(shape)):
            raise self.shape_error(shape, f"the layer reshapes them to {self.shape}")
        return self._target(shape)

    def _target(self, shape: Shape) -> Shape:
        return self.shape

    def activation_elements(self, shape: Shape) -> int:
        return 0

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        before = x.shape
        return x.reshape(before[0], *self._target(before[1:])), lambda dy: dy.reshape(before)


class Flatten(Reshape):
    """y (n, size) = x, without a copy."""

    kind = "flatten"

    def _target(self, shape: Shape) -> Shape:
        return (math.prod(shape),)
