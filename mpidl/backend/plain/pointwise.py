"""Bias, activations, dropout, softmax, input scaling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.backend.headers import codes

NDArr = NDArray[Any]
_erf = np.vectorize(math.erf, otypes=[float])
_ROOT = math.sqrt(2 / math.pi)
_NAMES = {number: name for name, number in codes("ACT").items()}


def _sigmoid(x: NDArr) -> NDArr:
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x < 0, small, 1) / (1 + small))


def _inner(x: NDArr) -> NDArr:
    return np.asarray(np.tanh(_ROOT * (x + 0.044715 * x**3)))


def bias_act(y: NDArr, bias: NDArr, rows: int, cols: int, relu: int) -> None:
    """PointwiseOps.bias_act."""
    y += bias
    if relu:
        np.maximum(y, 0, out=y)


def relu_forward(x: NDArr, y: NDArr, n: int) -> None:
    """PointwiseOps.relu_forward."""
    np.maximum(x, 0, out=y)


def relu_backward(dy: NDArr, y: NDArr, dx: NDArr, n: int) -> None:
    """PointwiseOps.relu_backward."""
    np.multiply(dy, y > 0, out=dx)


def column_sums(x: NDArr, sums: NDArr, rows: int, cols: int) -> None:
    """PointwiseOps.column_sums."""
    x.sum(axis=0, out=sums)


def scale_u8(x: NDArr, y: NDArr, n: int, scale: float, shift: float) -> None:
    """PointwiseOps.scale_u8."""
    np.multiply(x, y.dtype.type(scale), out=y, casting="same_kind")
    np.add(y, y.dtype.type(shift), out=y)


def act_forward(x: NDArr, y: NDArr, n: int, kind: int) -> None:
    """PointwiseOps.act_forward."""
    name = _NAMES[kind]
    if name == "relu":
        y[...] = np.maximum(x, 0)
    elif name == "gelu":
        y[...] = 0.5 * x * (1 + _erf(x / math.sqrt(2))) if x.size else x
    elif name == "gelu_tanh":
        y[...] = 0.5 * x * (1 + _inner(x))
    elif name == "silu":
        y[...] = x * _sigmoid(x)
    else:
        y[...] = np.tanh(x) if name == "tanh" else _sigmoid(x)


def act_backward(dy: NDArr, x: NDArr, y: NDArr, dx: NDArr, n: int, kind: int) -> None:
    """PointwiseOps.act_backward."""
    slope: Any
    name = _NAMES[kind]
    if name == "relu":
        slope = y > 0
    elif name == "gelu":
        density = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        slope = 0.5 * (1 + _erf(x / math.sqrt(2))) + x * density if x.size else x
    elif name == "gelu_tanh":
        t = _inner(x)
        slope = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * _ROOT * (1 + 3 * 0.044715 * x * x)
    elif name == "silu":
        s = _sigmoid(x)
        slope = s * (1 + x * (1 - s))
    else:
        slope = 1 - y * y if name == "tanh" else y * (1 - y)
    np.multiply(dy, slope, out=dx, casting="same_kind")


def philox(n: int, seed: int, step: int, stream: int) -> NDArray[np.uint32]:
    """(n,) random words of Philox4x32-10 with counters (i // 4, step, stream)."""
    groups = np.arange((n + 3) // 4, dtype=np.uint64)
    words = philox_words(groups, groups >> np.uint64(32), step, stream, seed)
    return words.reshape(-1)[:n].astype(np.uint32)


def philox_words(
    first: NDArray[np.uint64], second: Any, third: Any, fourth: Any, seed: int
) -> NDArray[np.uint64]:
    """(n, 4) words of Philox4x32-10 below 2^32, from counters of four words, taken modulo 2^32."""
    low = np.uint64(0xFFFFFFFF)
    c = [
        np.broadcast_to(np.asarray(word, np.uint64) & low, first.shape)
        for word in (first, second, third, fourth)
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
    return np.stack(c, axis=-1)


def dropout(x: NDArr, y: NDArr, n: int, keep: float, drawn: NDArr, stream: int) -> None:
    """PointwiseOps.dropout."""
    limit = 0xFFFFFFFF if keep >= 1 else int(keep * 4294967296.0)
    seed, step, part = (int(number) for number in drawn)
    kept = philox(n, seed, step, stream + part).reshape(x.shape) < np.uint32(limit)
    np.multiply(x, kept * x.dtype.type(1 / keep), out=y)


def softmax_forward(x: NDArr, y: NDArr, rows: int, cols: int, logarithm: int) -> None:
    """PointwiseOps.softmax_forward."""
    if x.size:
        shifted = x - x.max(axis=1, keepdims=True)
        total = np.exp(shifted).sum(axis=1, keepdims=True)
        y[...] = shifted - np.log(total) if logarithm else np.exp(shifted) / total


def softmax_backward(dy: NDArr, y: NDArr, dx: NDArr, rows: int, cols: int, logarithm: int) -> None:
    """PointwiseOps.softmax_backward."""
    if logarithm:
        dx[...] = dy - np.exp(y) * dy.sum(axis=1, keepdims=True)
    else:
        dx[...] = y * (dy - (dy * y).sum(axis=1, keepdims=True))
