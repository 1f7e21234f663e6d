"""Columns and pooling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

NDArr = NDArray[Any]


def _taps(geometry: tuple[int, ...]) -> Iterator[tuple[Any, Any]]:
    """For each tap of a kernel, its place and the slices of a padded input that it meets."""
    kernel, stride, dilation, out = (
        geometry[7:10],
        geometry[10:13],
        geometry[16:19],
        geometry[19:22],
    )
    for place in np.ndindex(*kernel):
        starts = [tap * gap for tap, gap in zip(place, dilation, strict=True)]
        yield (
            place,
            tuple(slice(a, a + s * o, s) for a, s, o in zip(starts, stride, out, strict=True)),
        )


def im2col(x: NDArr, columns: NDArr, *geometry: int) -> None:
    """Launcher kernel im2col."""
    n, c0, cg, pad = geometry[0], geometry[5], geometry[6], geometry[13:16]
    padded = np.pad(
        x.reshape(geometry[:5])[..., c0 : c0 + cg], ((0, 0), *((p, p) for p in pad), (0, 0))
    )
    grid = columns.reshape(n, *geometry[19:22], *geometry[7:10], cg)
    for place, slices in _taps(geometry):
        grid[(slice(None), slice(None), slice(None), slice(None), *place)] = padded[
            (slice(None), *slices)
        ]


def col2im(columns: NDArr, dx: NDArr, *geometry: int) -> None:
    """Launcher kernel col2im."""
    n, size, c0, cg, pad = geometry[0], geometry[1:4], geometry[5], geometry[6], geometry[13:16]
    padded = np.zeros((n, *(s + 2 * p for s, p in zip(size, pad, strict=True)), cg), dx.dtype)
    grid = columns.reshape(n, *geometry[19:22], *geometry[7:10], cg)
    for place, slices in _taps(geometry):
        padded[(slice(None), *slices)] += grid[
            (slice(None), slice(None), slice(None), slice(None), *place)
        ]
    inner = tuple(slice(p, p + s) for s, p in zip(size, pad, strict=True))
    dx.reshape(geometry[:5])[..., c0 : c0 + cg] = padded[(slice(None), *inner)]


def _windows(geometry: tuple[int, ...]) -> Iterator[tuple[int, int, slice, slice]]:
    _, h, w, _, k, stride, pad, oh, ow = geometry
    for oy in range(oh):
        for ox in range(ow):
            rows = slice(max(0, oy * stride - pad), min(h, oy * stride - pad + k))
            yield oy, ox, rows, slice(max(0, ox * stride - pad), min(w, ox * stride - pad + k))


def maxpool_forward(x: NDArr, y: NDArr, place: NDArr, *geometry: int) -> None:
    """Ops.maxpool_forward."""
    n, _, w, channels = geometry[:4]
    for oy, ox, rows, cols in _windows(geometry):
        window = x[:, rows, cols].reshape(
            n, (rows.stop - rows.start) * (cols.stop - cols.start), channels
        )
        index = window.argmax(axis=1)
        y[:, oy, ox] = np.take_along_axis(window, index[:, None], axis=1)[:, 0]
        wide = cols.stop - cols.start
        place[:, oy, ox] = (rows.start + index // wide) * w + cols.start + index % wide


def maxpool_backward(dy: NDArr, place: NDArr, dx: NDArr, *geometry: int) -> None:
    """Ops.maxpool_backward."""
    n, h, w, channels = geometry[:4]
    flat = np.zeros((n, h * w, channels), dx.dtype)
    samples, _, _, depths = np.indices(dy.shape)
    np.add.at(flat, (samples, place, depths), dy)
    dx[...] = flat.reshape(dx.shape)


def avgpool_forward(x: NDArr, y: NDArr, *geometry: int) -> None:
    """Ops.avgpool_forward."""
    for oy, ox, rows, cols in _windows(geometry):
        y[:, oy, ox] = x[:, rows, cols].mean(axis=(1, 2))


def avgpool_backward(dy: NDArr, dx: NDArr, *geometry: int) -> None:
    """Ops.avgpool_backward."""
    dx[...] = 0
    for oy, ox, rows, cols in _windows(geometry):
        dx[:, rows, cols] += dy[:, oy, ox][:, None, None] / (
            (rows.stop - rows.start) * (cols.stop - cols.start)
        )
