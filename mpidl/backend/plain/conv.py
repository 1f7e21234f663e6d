"""Convolution, columns and pooling; g is a record of kernels/geometry.h."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.backend.plain.pointwise import column_sums

NDArr = NDArray[Any]
ALL = slice(None)


def _sizes(g: NDArr, names: str) -> tuple[int, ...]:
    """Fields of a record."""
    return tuple(int(g[name]) for name in names.split())


def _taps(g: NDArr) -> Iterator[tuple[Any, Any]]:
    """For each tap of a kernel, its position and the slices of a padded input that it meets."""
    stride, dilation, out = (_sizes(g, names) for names in ("sd sh sw", "dd dh dw", "od oh ow"))
    for position in np.ndindex(*_sizes(g, "kd kh kw")):
        starts = [tap * gap for tap, gap in zip(position, dilation, strict=True)]
        spans = zip(starts, stride, out, strict=True)
        yield position, tuple(slice(a, a + s * o, s) for a, s, o in spans)


def _grid(columns: NDArr, g: NDArr) -> NDArr:
    return columns.reshape(_sizes(g, "n od oh ow kd kh kw c"))


def _group(x: NDArr, g: NDArr) -> NDArr:
    """The channels that are taken, a view."""
    first, c = _sizes(g, "first c")
    return x.reshape(_sizes(g, "n d h w channels"))[..., first : first + c]


def im2col(x: NDArr, columns: NDArr, g: NDArr) -> None:
    """The inputs under each output pixel; 0 outside."""
    pad = _sizes(g, "pd ph pw")
    padded = np.pad(_group(x, g), ((0, 0), *((p, p) for p in pad), (0, 0)))
    grid = _grid(columns, g)
    for position, slices in _taps(g):
        grid[(ALL, ALL, ALL, ALL, *position)] = padded[(ALL, *slices)]


def col2im(columns: NDArr, dx: NDArr, g: NDArr) -> None:
    """The transpose of im2col."""
    size, pad = _sizes(g, "d h w"), _sizes(g, "pd ph pw")
    wide = (s + 2 * p for s, p in zip(size, pad, strict=True))
    padded = np.zeros((int(g["n"]), *wide, int(g["c"])), dx.dtype)
    grid = _grid(columns, g)
    for position, slices in _taps(g):
        padded[(ALL, *slices)] += grid[(ALL, ALL, ALL, ALL, *position)]
    inner = tuple(slice(p, p + s) for s, p in zip(size, pad, strict=True))
    _group(dx, g)[...] = padded[(ALL, *inner)]


def _columns(x: NDArr, g: NDArr) -> NDArr:
    columns = np.empty(_sizes(g, "n oh ow kh kw channels"), x.dtype)
    im2col(x, columns, g)
    return columns.reshape(-1, int(g["kh"] * g["kw"] * g["channels"]))


def conv2d_forward(x: NDArr, w: NDArr, b: NDArr | None, out: NDArr, g: NDArr, relu: int) -> None:
    """A convolution of one group, with bias and ReLU."""
    outputs = int(g["outputs"])
    flat = out.reshape(-1, outputs)
    np.matmul(_columns(x, g), w.reshape(-1, outputs), out=flat)
    if b is not None:
        flat += b
    if relu:
        np.maximum(flat, 0, out=flat)


def conv2d_backward_input(dy: NDArr, w: NDArr, out: NDArr, g: NDArr) -> None:
    """Gradient of the input of conv2d_forward."""
    outputs = int(g["outputs"])
    col2im(dy.reshape(-1, outputs) @ w.reshape(-1, outputs).T, out, g)


def conv2d_backward_weights(x: NDArr, dy: NDArr, dw: NDArr, db: NDArr | None, g: NDArr) -> None:
    """Gradients of weights and bias of conv2d_forward."""
    flat = dy.reshape(-1, int(g["outputs"]))
    np.matmul(_columns(x, g).T, flat, out=dw.reshape(-1, flat.shape[1]))
    if db is not None:
        column_sums(flat, db, *flat.shape)


def _tiles(x: NDArr, g: NDArr) -> NDArr:
    """(n, oh, ow, c, k * k): a copy with the elements of each window last, row by row."""
    n, oh, ow, c, k = _sizes(g, "n oh ow c k")
    cut = x[:, : oh * k, : ow * k].reshape(n, oh, k, ow, k, c)
    return cut.transpose(0, 1, 3, 5, 2, 4).reshape(n, oh, ow, c, k * k)


def maxpool2d_forward(x: NDArr, out: NDArr, g: NDArr) -> None:
    """ConvOps.maxpool2d_forward."""
    _tiles(x, g).max(axis=-1, out=out)


def maxpool2d_backward(dy: NDArr, x: NDArr, y: NDArr, out: NDArr, g: NDArr, relu: int) -> None:
    """ConvOps.maxpool2d_backward."""
    n, oh, ow, c, k = _sizes(g, "n oh ow c k")
    spread = np.zeros((*y.shape, k * k), dy.dtype)
    source = dy * (y > 0) if relu else dy
    first = _tiles(x, g).argmax(axis=-1)[..., None]
    np.put_along_axis(spread, first, source[..., None], axis=-1)
    tiles = spread.reshape(n, oh, ow, c, k, k).transpose(0, 1, 4, 2, 5, 3)
    out[...] = 0
    out[:, : oh * k, : ow * k] = tiles.reshape(n, oh * k, ow * k, c)


def _windows(g: NDArr) -> Iterator[tuple[int, int, slice, slice]]:
    h, w, k, stride, pad, oh, ow = _sizes(g, "h w k stride pad oh ow")
    for oy in range(oh):
        for ox in range(ow):
            rows = slice(max(0, oy * stride - pad), min(h, oy * stride - pad + k))
            yield oy, ox, rows, slice(max(0, ox * stride - pad), min(w, ox * stride - pad + k))


def maxpool_forward(x: NDArr, y: NDArr, place: NDArr, g: NDArr) -> None:
    """ConvOps.maxpool_forward."""
    n, width, channels = _sizes(g, "n w c")
    for oy, ox, rows, cols in _windows(g):
        wide = cols.stop - cols.start
        window = x[:, rows, cols].reshape(n, (rows.stop - rows.start) * wide, channels)
        index = window.argmax(axis=1)
        y[:, oy, ox] = np.take_along_axis(window, index[:, None], axis=1)[:, 0]
        place[:, oy, ox] = (rows.start + index // wide) * width + cols.start + index % wide


def maxpool_backward(dy: NDArr, place: NDArr, dx: NDArr, g: NDArr) -> None:
    """ConvOps.maxpool_backward."""
    n, height, width, channels = _sizes(g, "n h w c")
    flat = np.zeros((n, height * width, channels), dx.dtype)
    samples, _, _, depths = np.indices(dy.shape)
    np.add.at(flat, (samples, place, depths), dy)
    dx[...] = flat.reshape(dx.shape)


def avgpool_forward(x: NDArr, y: NDArr, g: NDArr) -> None:
    """ConvOps.avgpool_forward."""
    for oy, ox, rows, cols in _windows(g):
        y[:, oy, ox] = x[:, rows, cols].mean(axis=(1, 2))


def avgpool_backward(dy: NDArr, dx: NDArr, g: NDArr) -> None:
    """ConvOps.avgpool_backward."""
    dx[...] = 0
    for oy, ox, rows, cols in _windows(g):
        count = (rows.stop - rows.start) * (cols.stop - cols.start)
        dx[:, rows, cols] += dy[:, oy, ox][:, None, None] / count
