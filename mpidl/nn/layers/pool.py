"""Pooling."""

from __future__ import annotations

import math

import numpy as np

from mpidl.backend import Array
from mpidl.backend.contract.conv import PoolGeometry
from mpidl.errors import ConfigError
from mpidl.nn.layer import Backward, Layer, Shape


class _Pool2D(Layer, base=True):
    def __init__(self, kernel: int = 2, *, stride: int | None = None, pad: int = 0) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride or kernel
        self.pad = pad
        if 2 * pad > kernel:
            raise ConfigError(
                f"padding {pad} is more than half of the window size {kernel}",
                remedy="choose a smaller padding, or some windows contain nothing else",
            )

    def _geometry(self, shape: Shape) -> PoolGeometry:
        height, width, channels = shape
        return PoolGeometry(height, width, channels, self.kernel, self.stride, self.pad)

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 3 or min(shape[:2]) + 2 * self.pad < self.kernel:
            raise self.shape_error(
                shape,
                f"pooling by {self.kernel} needs (height, width, channels) of at least "
                f"{self.kernel} x {self.kernel}",
            )
        g = self._geometry(shape)
        return g.out_height, g.out_width, shape[2]


class MaxPool2D(_Pool2D):
    """Max-pooling of x (n, h, w, c) to y (n, oh, ow, c); incomplete windows are dropped.

    Args:
        kernel: Height and width of the windows.
        stride: Distance between windows in pixels; by default `kernel`.
        pad: Pixels added on each side, which are never the maximum.

    Attributes:
        applies_relu_gradient: Whether the backward pass includes the ReLU of the layer before it;
            set by `mpidl.nn.fuse`.
    """

    kind = "max_pool2d"
    capturable = True

    def __init__(self, kernel: int = 2, *, stride: int | None = None, pad: int = 0) -> None:
        super().__init__(kernel, stride=stride, pad=pad)
        self.applies_relu_gradient = False

    @property
    def is_tiled(self) -> bool:
        """Whether the windows tile the image, so that the faster kernels can be used."""
        return self.stride == self.kernel and self.pad == 0

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        y = self.workspace.get("y", (x.shape[0], *self.output_shape(x.shape[1:])), x.dtype)
        g = self._geometry(x.shape[1:])
        argmax = None
        if self.is_tiled:
            self.ops.maxpool2d_forward(x, y, self.kernel)
        else:
            argmax = self.workspace.get("argmax", y.shape, np.int64)
            self.ops.maxpool_forward(x, y, argmax, g)

        def backward(dy: Array) -> Array:
            dx = self.workspace.get("dx", x.shape, x.dtype)
            dy = dy.reshape(y.shape)
            if argmax is None:
                relu = self.applies_relu_gradient
                self.ops.maxpool2d_backward(dy, x, y, dx, self.kernel, relu=relu)
            else:
                self.ops.maxpool_backward(dy, argmax, dx, g)
            return dx

        return y, backward


class AvgPool2D(_Pool2D):
    """Average-pooling of x (n, h, w, c) to y (n, oh, ow, c); padding is not counted.

    Args:
        kernel: Height and width of the windows.
        stride: Distance between windows in pixels; by default `kernel`.
        pad: Pixels added on each side.
    """

    kind = "avg_pool2d"

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        y = self.workspace.get("y", (x.shape[0], *self.output_shape(x.shape[1:])), x.dtype)
        g = self._geometry(x.shape[1:])
        self.ops.avgpool_forward(x, y, g)

        def backward(dy: Array) -> Array:
            dx = self.workspace.get("dx", x.shape, x.dtype)
            self.ops.avgpool_backward(dy.reshape(y.shape), dx, g)
            return dx

        return y, backward


class GlobalAvgPool(Layer):
    """Mean of x (n, ..., c) over all positions, y (n, c)."""

    kind = "global_avg_pool"

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) < 2:
            raise self.shape_error(shape, "averaging needs positions and channels")
        return (shape[-1],)

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        n, channels = x.shape[0], x.shape[-1]
        positions = math.prod(x.shape[1:-1])
        y = self.workspace.get("y", (n, channels), x.dtype)
        x.reshape(n, positions, channels).mean(axis=1, out=y)

        def backward(dy: Array) -> Array:
            dx = self.workspace.get("dx", x.shape, x.dtype)
            dx.reshape(n, positions, channels)[...] = (dy / positions)[:, None]
            return dx

        return y, backward
