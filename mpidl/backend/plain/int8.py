"""Products with int8 weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.backend.plain.conv import im2col

NDArr = NDArray[Any]
SMALLEST = np.float32(1e-36)  # peak that is not taken for 0


def quantize_rows(rows: NDArr) -> tuple[NDArr, NDArr]:
    """Whole numbers of each row, and its scale: NaN where the row is not finite."""
    peak = np.abs(rows.astype(np.float32)).max(axis=1, initial=0)
    bad = ~np.isfinite(peak)
    used = ~bad & (peak > SMALLEST)
    inverse = np.float32(127) / np.where(used, peak, 1).astype(np.float32)
    scaled = np.where(used[:, None], rows, 0).astype(np.float32) * inverse[:, None]
    scale = np.where(bad, np.nan, np.where(used, peak / np.float32(127), 0))
    return np.rint(scaled).astype(np.int64), scale.astype(np.float32)


def _matrix(w: NDArr) -> NDArr:
    """(inputs, columns) of panels, with the padding."""
    panels, groups = w.shape[:2]
    split = w.reshape(panels, groups, 32, 4).transpose(1, 3, 0, 2)
    return split.reshape(groups * 4, panels * 32).astype(np.int64)


def _finish(
    sums: NDArr, scale: NDArr, scales: NDArr, bias: NDArr | None, out: NDArr, relu: int
) -> None:
    out[...] = sums * (scales[: out.shape[1]] * scale[:, None])
    if bias is not None:
        out += bias
    if relu:
        np.maximum(out, 0, out=out)


def int8_dense(
    x: NDArr,
    w: NDArr,
    base: NDArr,
    scales: NDArr,
    bias: NDArr | None,
    out: NDArr,
    rows: int,
    cols: int,
    k: int,
    panels: int,
    groups: int,
    relu: int,
) -> None:
    """Int8Ops.int8_dense."""
    numbers, scale = quantize_rows(x)
    _finish(numbers @ _matrix(w)[:k, :cols], scale, scales, bias, out, relu)


def int8_conv(
    x: NDArr,
    w: NDArr,
    base: NDArr,
    scales: NDArr,
    bias: NDArr | None,
    out: NDArr,
    g: NDArr,
    panels: int,
    groups: int,
    pool: int,
    outs: int,
    relu: int,
) -> None:
    """Int8Ops.int8_conv."""
    n, outputs = int(g["n"]), int(g["outputs"])
    numbers, scale = quantize_rows(x.reshape(n, x[:1].size))
    k = int(g["kd"] * g["kh"] * g["kw"] * g["c"])
    pixels = int(g["od"] * g["oh"] * g["ow"])
    columns = np.empty((n * pixels, k), np.int64)
    im2col(numbers, columns, g)
    run = int(g["c"] * (g["kw"] if g["dw"] == 1 else 1))
    padded = _matrix(w).reshape(k // run, -1, panels * 32)
    sums = columns @ padded[:, :run, :outputs].reshape(k, outputs)
    found = np.empty((n * pixels, outputs), out.dtype)
    _finish(sums, np.repeat(scale, pixels), scales, bias, found, relu)
    height, width = int(g["oh"]) // pool * pool, int(g["ow"]) // pool * pool
    image = found.reshape(-1, int(g["oh"]), int(g["ow"]), outputs)[:, :height, :width]
    windows = image.reshape(len(image), height // pool, pool, width // pool, pool, outputs)
    out.reshape(n * outs, outputs)[...] = windows.max(axis=(2, 4)).reshape(n * outs, outputs)
