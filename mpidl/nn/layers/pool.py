"""Pooling."""

from __future__ import annotations

import math

import numpy as np

from mpidl.backend import Array
from mpidl.backend.contract.conv import PoolGeometry
from mpidl.nn.layer import Backward, Layer, Shape
from mpidl.nn.layers.conv import Conv2D


class _Pool2D(Layer):
    def __init__(self, k: int, stride: int | None, pad: int) -> None:
        super().__init__()
        self.k, self.stride, self.pad = k, stride or k, pad
        if 2 * pad > k:
            raise ValueError(f"padding of {pad} is more than half a window of {k}")

    def _geometry(self, shape: Shape) -> PoolGeometry:
        height, width, channels = shape
        return PoolGeometry(height, width, channels, self.k, self.stride, self.pad)

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 3 or min(shape[:2]) + 2 * self.pad < self.k:
            raise self._refuse(
                shape,
                f"pooling by {self.k} needs (height, width, channels) of at least {self.k} x {self.k}",
            )
        g = self._geometry(shape)
        return g.out_height, g.out_width, shape[2]


class MaxPool2D(_Pool2D):
    """y (n, oh, ow, c) = maximum over windows of k x k, every `stride` (k) pixels; what fills no window is dropped."""

    capturable = True

    kind = "pool"

    def __init__(self, k: int = 2, *, stride: int | None = None, pad: int = 0) -> None:
        super().__init__(k, stride, pad)
        self.masks_relu = False

    @property
    def _tiled(self) -> bool:
        """Whether windows stand side by side: the faster kernels."""
        return self.stride == self.k and self.pad == 0

    def follow(self, previous: Layer) -> None:
        """Take over the ReLU gradient of a convolution right before: one pass over the large array instead of two."""
        if isinstance(previous, Conv2D) and previous.has_relu and self._tiled:
            self.masks_relu = previous.relu_is_masked = True

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        y = self.space.get("y", (x.shape[0], *self.output_shape(x.shape[1:])), x.dtype)
        g, place = self._geometry(x.shape[1:]), None
        if self._tiled:
            self.ops.maxpool2d_forward(x, y, self.k)
        else:
            place = self.space.get("place", y.shape, np.int64)
            self.ops.maxpool_forward(x, y, place, g)

        def backward(dy: Array) -> Array:
            dx, dy = self.space.get("dx", x.shape, x.dtype), dy.reshape(y.shape)
            if place is None:
                self.ops.maxpool2d_backward(dy, x, y, dx, self.k, relu=self.masks_relu)
            else:
                self.ops.maxpool_backward(dy, place, dx, g)
            return dx

        return y, backward


class AvgPool2D(_Pool2D):
    """y (n, oh, ow, c) = mean over windows of k x k, every `stride` (k) pixels; padding is not counted."""

    kind = "avgpool"

    def __init__(self, k: int = 2, *, stride: int | None = None, pad: int = 0) -> None:
        super().__init__(k, stride, pad)

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        y, g = (
            self.space.get("y", (x.shape[0], *self.output_shape(x.shape[1:])), x.dtype),
            self._geometry(x.shape[1:]),
        )
        self.ops.avgpool_forward(x, y, g)

        def backward(dy: Array) -> Array:
            dx = self.space.get("dx", x.shape, x.dtype)
            self.ops.avgpool_backward(dy.reshape(y.shape), dx, g)
            return dx

        return y, backward


class GlobalAveragePool(Layer):
    """y (n, c) = mean of x (n, ..., c) over all places."""

    kind = "gap"

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) < 2:
            raise self._refuse(shape, "averaging needs places and channels")
        return (shape[-1],)

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        places = math.prod(x.shape[1:-1])
        y = self.space.get("y", (x.shape[0], x.shape[-1]), x.dtype)
        x.reshape(x.shape[0], places, x.shape[-1]).mean(axis=1, out=y)

        def backward(dy: Array) -> Array:
            dx = self.space.get("dx", x.shape, x.dtype)
            dx.reshape(x.shape[0], places, x.shape[-1])[...] = (dy / places)[:, None]
            return dx

        return y, backward
