"""Pooling."""

from __future__ import annotations

from mpidl.backend import Array
from mpidl.nn.conv import Conv2D
from mpidl.nn.layer import Backward, Layer, Shape


class MaxPool2D(Layer):
    """y (n, h // k, w // k, c) = maximum over windows of k x k; rows and columns that fill no window are dropped."""

    kind = "pool"

    def __init__(self, k: int = 2) -> None:
        super().__init__()
        self.k = k
        self.masks_relu = False

    def follow(self, previous: Layer) -> None:
        """Take over the ReLU gradient of a convolution right before: one pass over the large array instead of two."""
        if isinstance(previous, Conv2D) and previous.has_relu:
            self.masks_relu = previous.relu_is_masked = True

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 3 or shape[0] < self.k or shape[1] < self.k:
            raise self._refuse(shape, f"pooling by {self.k} needs (height, width, channels) of at least {self.k} x {self.k}")
        return shape[0] // self.k, shape[1] // self.k, shape[2]

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        y = self.space.get("y", (x.shape[0], *self.output_shape(x.shape[1:])), x.dtype)
        self.ops.maxpool2d_forward(x, y, self.k)

        def backward(dy: Array) -> Array:
            dx = self.space.get("dx", x.shape, x.dtype)
            self.ops.maxpool2d_backward(dy, x, y, dx, self.k, relu=self.masks_relu)
            return dx

        return y, backward
