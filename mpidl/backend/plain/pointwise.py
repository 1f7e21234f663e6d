"""Activations, dropout, softmax, losses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

NDArr = NDArray[Any]
_erf = np.vectorize(math.erf, otypes=[float])
_ROOT = math.sqrt(2 / math.pi)


def _sigmoid(x: NDArr) -> NDArr:
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x < 0, small, 1) / (1 + small))


def _inner(x: NDArr) -> NDArr:
    return np.asarray(np.tanh(_ROOT * (x + 0.044715 * x**3)))


def act_forward(x: NDArr, y: NDArr, n: int, kind: int) -> None:
    """Ops.act_forward."""
    if kind == 0:
        y[...] = np.maximum(x, 0)
    elif kind == 1:
        y[...] = 0.5 * x * (1 + _erf(x / math.sqrt(2))) if x.size else x
    elif kind == 2:
        y[...] = 0.5 * x * (1 + _inner(x))
    elif kind == 3:
        y[...] = x * _sigmoid(x)
    else:
        y[...] = np.tanh(x) if kind == 4 else _sigmoid(x)


def act_backward(dy: NDArr, x: NDArr, y: NDArr, dx: NDArr, n: int, kind: int) -> None:
    """Ops.act_backward."""
    slope: Any
    if kind == 0:
        slope = y > 0
    elif kind == 1:
        slope = (
            0.5 * (1 + _erf(x / math.sqrt(2))) + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
            if x.size
            else x
        )
    elif kind == 2:
        t = _inner(x)
        slope = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * _ROOT * (1 + 3 * 0.044715 * x * x)
    elif kind == 3:
        s = _sigmoid(x)
        slope = s * (1 + x * (1 - s))
    else:
        slope = 1 - y * y if kind == 4 else y * (1 - y)
    np.multiply(dy, slope, out=dx, casting="same_kind")


def philox(n: int, seed: int, step: int, stream: int) -> NDArray[np.uint32]:
    """(n,) random words of Philox4x32-10 with counters (i // 4, step, stream)."""
    groups = np.arange((n + 3) // 4, dtype=np.uint64)
    low = np.uint64(0xFFFFFFFF)
    c = [
        groups & low,
        groups >> np.uint64(32),
        np.full_like(groups, step & 0xFFFFFFFF),
        np.full_like(groups, stream & 0xFFFFFFFF),
    ]
    k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [
            (b >> np.uint64(32)) ^ c[1] ^ np.uint64(k0),
            b & low,
            (a >> np.uint64(32)) ^ c[3] ^ np.uint64(k1),
            a & low,
        ]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, axis=1).reshape(-1)[:n].astype(np.uint32)


def dropout(x: NDArr, y: NDArr, n: int, keep: float, drawn: NDArr, stream: int) -> None:
    """Ops.dropout."""
    limit = 0xFFFFFFFF if keep >= 1 else int(keep * 4294967296.0)
    seed, step, part = (int(number) for number in drawn)
    kept = philox(n, seed, step, stream + part).reshape(x.shape) < np.uint32(limit)
    np.multiply(x, kept * x.dtype.type(1 / keep), out=y)


def softmax_forward(x: NDArr, y: NDArr, rows: int, cols: int, logarithm: int) -> None:
    """Ops.softmax_forward."""
    if x.size:
        shifted = x - x.max(axis=1, keepdims=True)
        total = np.exp(shifted).sum(axis=1, keepdims=True)
        y[...] = shifted - np.log(total) if logarithm else np.exp(shifted) / total


def softmax_backward(dy: NDArr, y: NDArr, dx: NDArr, rows: int, cols: int, logarithm: int) -> None:
    """Ops.softmax_backward."""
    if logarithm:
        dx[...] = dy - np.exp(y) * dy.sum(axis=1, keepdims=True)
    else:
        dx[...] = y * (dy - (dy * y).sum(axis=1, keepdims=True))


def pair_loss(
    x: NDArr,
    target: NDArr,
    loss: NDArr,
    dx: NDArr,
    rows: int,
    cols: int,
    scale: float,
    kind: int,
    delta: float,
) -> None:
    """Ops.pair_loss."""
    error = x - target
    if kind == 4:
        size, norm = (np.linalg.norm(part, axis=1) for part in (error, target))
        norm = np.where(norm <= delta, 1, norm)
        loss[...] = size / norm
        # where x equals the target the norm has no derivative: 0 is in its subdifferential
        factor = np.divide(scale, size * norm, out=np.zeros_like(norm), where=size != 0)
        dx[...] = error * factor[:, None]
        return
    if kind == 0:
        each, slope = error**2, 2 * error
    elif kind == 1:
        size = np.abs(error)
        each = np.where(size <= delta, 0.5 * error**2, delta * (size - 0.5 * delta))
        slope = np.clip(error, -delta, delta)
    elif kind == 3:
        each, slope = np.abs(error), np.sign(error)
    else:
        each, slope = (
            np.maximum(x, 0) - x * target + np.log1p(np.exp(-np.abs(x))),
            _sigmoid(x) - target,
        )
    loss[...] = each.sum(axis=1)
    dx[...] = slope * scale
