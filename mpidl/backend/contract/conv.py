"""Convolution of one to three dimensions as matrix products of columns, and pooling."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.backend.array import Array
from mpidl.backend.contract.dense import DenseOps
from mpidl.backend.headers import structs

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class ConvGeometry:
    """Sizes of a convolution over (depth, height, width); missing dimensions have size 1.

    Attributes:
        size: Of the input.
        in_channels: Of the input.
        out_channels: Of the output.
        kernel: Size of the kernel.
        stride: Pixels between outputs.
        pad: Zeros on both sides.
        dilation: Distance of neighboring kernel elements.
        groups: Each has in_channels / groups inputs and out_channels / groups outputs.
    """

    size: Triple
    in_channels: int
    out_channels: int
    kernel: Triple
    stride: Triple = (1, 1, 1)
    pad: Triple = (0, 0, 0)
    dilation: Triple = (1, 1, 1)
    groups: int = 1

    @property
    def out_size(self) -> Triple:
        """Size of the output."""
        spans = zip(self.size, self.kernel, self.stride, self.pad, self.dilation, strict=True)
        a, b, c = ((n + 2 * p - g * (k - 1) - 1) // s + 1 for n, k, s, p, g in spans)
        return a, b, c

    @property
    def taps(self) -> int:
        """Elements of a kernel for one channel."""
        return self.kernel[0] * self.kernel[1] * self.kernel[2]

    @property
    def runs(self) -> int:
        """Pieces in memory of the inputs below an output: lines of the kernel, or its pixels."""
        return self.taps // (self.kernel[2] if self.dilation[2] == 1 else 1)

    @property
    def is_product(self) -> bool:
        """Whether it is one matrix product of the pixels as they are."""
        ones = (1, 1, 1)
        return self.kernel == self.stride == ones and self.pad == (0, 0, 0) and self.groups == 1

    @property
    def is_direct(self) -> bool:
        """Whether kernels without columns can do it: 2-D, one group, square stride and padding."""
        flat = self.size[0] == self.kernel[0] == self.stride[0] == 1 and self.pad[0] == 0
        square = self.stride[1] == self.stride[2] and self.pad[1] == self.pad[2]
        return flat and square and self.groups == 1 and self.dilation == (1, 1, 1)

    def record(self, n: int, group: int = 0) -> NDArray[np.void]:
        """The `conv_geometry` of n images, for the channels of one group."""
        c = self.in_channels // self.groups
        channels = (self.in_channels, group * c, c, self.out_channels)
        numbers = (*self.kernel, *self.stride, *self.pad, *self.dilation, *self.out_size)
        return np.array((n, *self.size, *channels, *numbers), structs()["conv_geometry"])


@dataclass(frozen=True)
class PoolGeometry:
    """Sizes of a pooling.

    Attributes:
        height: Of the input.
        width: Of the input.
        channels: Of the input.
        k: Windows are k x k.
        stride: Pixels between windows.
        pad: Pixels over the edge, less than k.
    """

    height: int
    width: int
    channels: int
    k: int
    stride: int
    pad: int

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        return (self.height + 2 * self.pad - self.k) // self.stride + 1

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        return (self.width + 2 * self.pad - self.k) // self.stride + 1

    def record(self, n: int) -> NDArray[np.void]:
        """The `pool_geometry` of n images."""
        size = (n, self.height, self.width, self.channels)
        windows = (self.k, self.stride, self.pad, self.out_height, self.out_width)
        return np.array((*size, *windows), structs()["pool_geometry"])


class ConvOps(DenseOps):
    """Convolution and pooling, NHWC.

    Attributes:
        column_bytes: Upper bound of the im2col workspace, in bytes, where it holds more than one
            image.
    """

    column_bytes = 512 << 10

    @abstractmethod
    def column_space(self, count: int, dtype: Any) -> Array:
        """Reused memory for `count` elements of columns."""

    def conv_forward(
        self,
        x: Array,
        w: Array,
        b: Array | None,
        out: Array,
        g: ConvGeometry,
        *,
        relu: bool = False,
    ) -> None:
        """out = act(x convolved with w + b).

        Args:
            x: (n, *size, ci).
            w: (*kernel, ci / groups, co).
            b: (co,).
            out: (n, *out size, co).
            g: The sizes.
            relu: ReLU behind it.
        """
        flat_w = w.reshape(-1, g.out_channels)
        rows = out.reshape(-1, g.out_channels)
        for low, high, group, outputs in self._parts(len(x), g, x.dtype):
            columns = self._columns(x[low:high], g, group)
            self.matmul(columns, flat_w[:, outputs], _rows(rows, low, high, g)[:, outputs])
        if b is not None:
            self.bias_act(rows, b, relu=relu)
        elif relu:
            self.relu_forward(out, out)

    def conv_backward_input(self, dy: Array, w: Array, out: Array, g: ConvGeometry) -> None:
        """out (n, *size, ci) = gradient of the input, overwritten."""
        flat_w = w.reshape(-1, g.out_channels)
        rows = dy.reshape(-1, g.out_channels)
        c = g.in_channels // g.groups
        for low, high, group, outputs in self._parts(len(dy), g, dy.dtype):
            pixels = (high - low) * g.out_size[0] * g.out_size[1] * g.out_size[2]
            columns = self.column_space(pixels * g.taps * c, dy.dtype).reshape(pixels, -1)
            self.matmul(_rows(rows, low, high, g)[:, outputs], flat_w[:, outputs].T, columns)
            self.launch("col2im", columns, out[low:high], g.record(high - low, group))

    def conv_backward_weights(
        self, x: Array, dy: Array, dw: Array, db: Array | None, g: ConvGeometry
    ) -> None:
        """Gradients of the weights dw and of the bias db (co), overwritten."""
        flat_dw = dw.reshape(-1, g.out_channels)
        rows = dy.reshape(-1, g.out_channels)
        flat_dw[...] = 0
        for low, high, group, outputs in self._parts(len(x), g, x.dtype):
            columns = self._columns(x[low:high], g, group)
            part = _rows(rows, low, high, g)[:, outputs]
            self.matmul(columns.T, part, flat_dw[:, outputs], accumulate=True)
        if db is not None:
            self.column_sums(rows, db)

    def maxpool2d_forward(self, x: Array, out: Array, k: int) -> None:
        """out (n, h // k, w // k, c) = maxima over windows of k x k with stride k.

        Cheaper than `maxpool_forward`, since no places are kept: the gradient finds them again.
        """
        self.launch("maxpool2d_forward", x, out, _tiles(x, k))

    def maxpool2d_backward(
        self, dy: Array, x: Array, y: Array, out: Array, k: int, *, relu: bool
    ) -> None:
        """out (n, h, w, c) = dy at the first maximum of each window, 0 elsewhere.

        With relu also 0 where x <= 0: the gradient of a ReLU that made x.
        """
        self.launch("maxpool2d_backward", dy, x, y, out, _tiles(x, k), int(relu))

    def maxpool_forward(self, x: Array, out: Array, place: Array, g: PoolGeometry) -> None:
        """Maxima over windows that may overlap.

        Args:
            x: (n, h, w, c).
            out: (n, oh, ow, c).
            place: int64, as out: the position in its image where each was found first.
            g: The sizes.
        """
        self.launch("maxpool_forward", x, out, place, g.record(len(x)))

    def maxpool_backward(self, dy: Array, place: Array, out: Array, g: PoolGeometry) -> None:
        """out (n, h, w, c) = each dy at the position of its maximum, summed."""
        self.launch("maxpool_backward", dy, place, out, g.record(len(dy)))

    def avgpool_forward(self, x: Array, out: Array, g: PoolGeometry) -> None:
        """out = means over the pixels of each window that lie in the image."""
        self.launch("avgpool_forward", x, out, g.record(len(x)))

    def avgpool_backward(self, dy: Array, out: Array, g: PoolGeometry) -> None:
        """out = gradient of the input of `avgpool_forward`."""
        self.launch("avgpool_backward", dy, out, g.record(len(dy)))

    def _parts(self, n: int, g: ConvGeometry, dtype: Any) -> Iterator[tuple[int, int, int, slice]]:
        """(first image, last + 1, group, its output channels)."""
        pixels = g.out_size[0] * g.out_size[1] * g.out_size[2]
        each = pixels * g.taps * (g.in_channels // g.groups) * dtype.itemsize
        step = max(1, self.column_bytes // max(1, each))
        width = g.out_channels // g.groups
        for group in range(g.groups):
            for low in range(0, n, step):
                yield low, min(low + step, n), group, slice(group * width, (group + 1) * width)

    def _columns(self, x: Array, g: ConvGeometry, group: int) -> Array:
        if g.is_product:
            return x.reshape(-1, g.in_channels)
        pixels = len(x) * g.out_size[0] * g.out_size[1] * g.out_size[2]
        count = pixels * g.taps * (g.in_channels // g.groups)
        columns = self.column_space(count, x.dtype).reshape(pixels, -1)
        self.launch("im2col", x, columns, g.record(len(x), group))
        return columns


def _rows(rows: Array, low: int, high: int, g: ConvGeometry) -> Array:
    """Those of images [low, high)."""
    pixels = g.out_size[0] * g.out_size[1] * g.out_size[2]
    return rows[low * pixels : high * pixels]


def _tiles(x: Array, k: int) -> NDArray[np.void]:
    """Of windows side by side; rows and columns that fill no window are dropped."""
    n, height, width, channels = x.shape
    return PoolGeometry(height, width, channels, k, k, 0).record(n)
