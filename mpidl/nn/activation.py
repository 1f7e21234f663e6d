"""Activations as layers of their own."""

from __future__ import annotations

from mpidl.backend import Array
from mpidl.nn.layer import Backward, Layer, Shape


class ReLU(Layer):
    """y = max(x, 0), any shape."""

    kind = "relu"

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        y = self.space.get("y", x.shape, x.dtype)
        self.ops.relu_forward(x, y)

        def backward(dy: Array) -> Array:
            self.ops.relu_backward(dy, y, dy)
            return dy

        return y, backward
