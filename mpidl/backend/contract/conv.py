"""Convolution of one to three dimensions as matrix products of columns, and pooling with overlapping windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mpidl.backend.contract.base import Array, Launcher
from mpidl.errors import BackendError

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class ConvGeometry:
    """Numbers of a convolution over (depth, height, width); dimensions that are missing have extent 1.

    pad: zeros on both sides; groups: each has in_channels / groups inputs and out_channels / groups outputs.
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
        """Extents of the output."""
        spans = zip(self.size, self.kernel, self.stride, self.pad, self.dilation, strict=True)
        a, b, c = ((n + 2 * p - g * (k - 1) - 1) // s + 1 for n, k, s, p, g in spans)
        return a, b, c

    @property
    def taps(self) -> int:
        """Elements of a kernel for one channel."""
        return self.kernel[0] * self.kernel[1] * self.kernel[2]


@dataclass(frozen=True)
class PoolGeometry:
    """Numbers of a pooling: windows of k x k every `stride` pixels, `pad` pixels over the edge (less than k)."""

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

    def numbers(self, n: int) -> tuple[int, ...]:
        """As the kernels take them, for n images."""
        return (
            n,
            self.height,
            self.width,
            self.channels,
            self.k,
            self.stride,
            self.pad,
            self.out_height,
            self.out_width,
        )


class ConvOps(Launcher):
    """column_bytes: columns are made of so many images at a time that they stay below this."""

    column_bytes = 512 << 10

    def column_space(self, count: int, dtype: Any) -> Array:
        """Reused memory for `count` elements of columns."""
        raise NotImplementedError

    def conv_forward(
        self, x: Array, w: Array, b: Array | None, out: Array, g: ConvGeometry
    ) -> None:
        """Out (n, *out size, co) = b (co) + x (n, *size, ci) convolved with w (*kernel, ci / groups, co)."""
        flat_w, rows = w.reshape(-1, g.out_channels), out.reshape(-1, g.out_channels)
        for low, high, group, outputs in self._parts(len(x), g, x.dtype):
            columns = self._columns(x[low:high], g, group)
            self.matmul(columns, flat_w[:, outputs], self._rows(rows, low, high, g)[:, outputs])
        if b is not None:
            self.bias_act(rows, b, relu=False)

    def conv_backward_input(self, dy: Array, w: Array, out: Array, g: ConvGeometry) -> None:
        """Out (n, *size, ci) = gradient of the input, overwritten."""
        flat_w, rows = w.reshape(-1, g.out_channels), dy.reshape(-1, g.out_channels)
        cg = g.in_channels // g.groups
        for low, high, group, outputs in self._parts(len(dy), g, dy.dtype):
            pixels = (high - low) * g.out_size[0] * g.out_size[1] * g.out_size[2]
            columns = self.column_space(pixels * g.taps * cg, dy.dtype).reshape(pixels, -1)
            self.matmul(self._rows(rows, low, high, g)[:, outputs], flat_w[:, outputs].T, columns)
            self.launch("col2im", columns, out[low:high], *_numbers(high - low, g, group))

    def conv_backward_weights(
        self, x: Array, dy: Array, dw: Array, db: Array | None, g: ConvGeometry
    ) -> None:
        """Gradients of the weights and of the bias (co), overwritten."""
        flat_dw, rows = dw.reshape(-1, g.out_channels), dy.reshape(-1, g.out_channels)
        flat_dw[...] = 0
        for low, high, group, outputs in self._parts(len(x), g, x.dtype):
            columns = self._columns(x[low:high], g, group)
            self.matmul(
                columns.T,
                self._rows(rows, low, high, g)[:, outputs],
                flat_dw[:, outputs],
                accumulate=True,
            )
        if db is not None:
            self.column_sums(rows, db)

    def maxpool_forward(self, x: Array, out: Array, place: Array, g: PoolGeometry) -> None:
        """Out (n, oh, ow, c) = maxima over windows; place (int64, same shape): where in its image each was found first."""
        self.launch("maxpool_forward", x, out, place, *g.numbers(len(x)))

    def maxpool_backward(self, dy: Array, place: Array, out: Array, g: PoolGeometry) -> None:
        """Out (n, h, w, c): each dy at the place of its maximum, added up."""
        self.launch("maxpool_backward", dy, place, out, *g.numbers(len(dy)))

    def avgpool_forward(self, x: Array, out: Array, g: PoolGeometry) -> None:
        """Out = means over the pixels of each window that lie in the image."""
        self.launch("avgpool_forward", x, out, *g.numbers(len(x)))

    def avgpool_backward(self, dy: Array, out: Array, g: PoolGeometry) -> None:
        """Gradient of the input of avgpool_forward."""
        self.launch("avgpool_backward", dy, out, *g.numbers(len(dy)))

    def _parts(self, n: int, g: ConvGeometry, dtype: Any) -> Iterator[tuple[int, int, int, slice]]:
        """(first image, last + 1, group, its output channels)."""
        pixels = g.out_size[0] * g.out_size[1] * g.out_size[2]
        each = pixels * g.taps * (g.in_channels // g.groups) * dtype.itemsize
        step, width = max(1, self.column_bytes // max(1, each)), g.out_channels // g.groups
        for group in range(g.groups):
            for low in range(0, n, step):
                yield low, min(low + step, n), group, slice(group * width, (group + 1) * width)

    def _columns(self, x: Array, g: ConvGeometry, group: int) -> Array:
        plain = g.taps == 1 and g.stride == (1, 1, 1) and g.pad == (0, 0, 0) and g.groups == 1
        if plain:
            return x.reshape(-1, g.in_channels)
        pixels, cg = (
            len(x) * g.out_size[0] * g.out_size[1] * g.out_size[2],
            g.in_channels // g.groups,
        )
        columns = self.column_space(pixels * g.taps * cg, x.dtype).reshape(pixels, -1)
        self.launch("im2col", x, columns, *_numbers(len(x), g, group))
        return columns

    def _rows(self, rows: Array, low: int, high: int, g: ConvGeometry) -> Array:
        pixels = g.out_size[0] * g.out_size[1] * g.out_size[2]
        return rows[low * pixels : high * pixels]


def _numbers(n: int, g: ConvGeometry, group: int) -> tuple[int, ...]:
    cg = g.in_channels // g.groups
    channels = (g.in_channels, group * cg, cg)
    return (n, *g.size, *channels, *g.kernel, *g.stride, *g.pad, *g.dilation, *g.out_size)


def check_tiles(x: Array, tiled: Array, k: int) -> None:
    """Raise BackendError unless `tiled` has an element for each window of k x k of x (n, h, w, c)."""
    n, height, width, channels = x.shape
    if tiled.shape != (n, height // k, width // k, channels):
        raise BackendError(
            f"windows of {k} x {k} over {x.shape} do not give {tiled.shape}",
            where="maxpool2d",
            remedy="check the shapes",
        )
