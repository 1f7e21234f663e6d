"""Packing of gradients."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mpidl.backend.contract.compress import BFLOAT16, STEP_LIMIT

NDArr = NDArray[Any]


def _by_block(x: NDArr, block: int) -> NDArr:
    padded = np.zeros(-(-x.size // block) * block, np.float32)
    padded[: x.size] = x
    return padded.reshape(-1, block)


def _put(values: NDArr, y: NDArr, sign: int) -> None:
    if sign:
        y += sign * values
    else:
        y[...] = values


def int8_pack(
    x: NDArr, scales: NDArr, q: NDArr, n: int, block: int, blocks: int, seed: int
) -> None:
    """CompressOps.int8_pack."""
    rows = _by_block(x, block)
    scales[...] = np.abs(rows).max(1) / 127
    noise = np.random.default_rng(seed).random(rows.shape, np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.where(scales[:, None] > 0, rows / scales[:, None], 0)
        rounded = np.clip(np.floor(scaled + noise), -127, 127)
        q.view(np.int8)[...] = rounded.reshape(-1)[:n]


def int8_unpack(
    scales: NDArr, q: NDArr, y: NDArr, n: int, block: int, blocks: int, sign: int
) -> None:
    """CompressOps.int8_unpack."""
    _put(np.repeat(scales, block)[:n] * q.view(np.int8), y, sign)


def sign_pack(
    x: NDArr, scales: NDArr, bits: NDArr, n: int, block: int, blocks: int, count: int
) -> None:
    """CompressOps.sign_pack."""
    elements = np.minimum(block, n - block * np.arange(blocks))
    scales[...] = np.abs(_by_block(x, block)).sum(1) / elements
    bits[...] = np.packbits(x >= 0, bitorder="little")


def sign_unpack(
    scales: NDArr, bits: NDArr, y: NDArr, n: int, block: int, blocks: int, count: int, sign: int
) -> None:
    """CompressOps.sign_unpack."""
    signs = np.unpackbits(bits, count=n, bitorder="little").astype(np.float32) * 2 - 1
    _put(np.repeat(scales, block)[:n] * signs, y, sign)


def add_and_keep(values: NDArr, residual: NDArr, n: int) -> None:
    """CompressOps.add_and_keep."""
    values += residual
    residual[...] = values


def topk(x: NDArr, index: NDArr, value: NDArr, n: int, k: int) -> None:
    """CompressOps.topk."""
    index[...] = np.sort(np.argpartition(np.abs(x), n - k)[n - k :])
    value[...] = x[index]


def topk_feedback(
    x: NDArr, residual: NDArr, hint: NDArr, index: NDArr, value: NDArr, n: int, k: int
) -> None:
    """CompressOps.topk_feedback."""
    add_and_keep(x, residual, n)
    topk(x, index, value, n, k)


def topk_pack(index: NDArr, value: NDArr, packet: NDArr, k: int, room: int) -> None:
    """CompressOps.topk_pack."""
    steps = np.diff(index, prepend=np.int32(-1)) - 1
    places = np.arange(k) + np.cumsum(steps // STEP_LIMIT)
    packet[...] = 0
    packet[0, : places[-1] + 1] = STEP_LIMIT - 1
    packet[0, places] = steps % STEP_LIMIT
    packet[1, places] = value.astype(BFLOAT16).view(np.uint16)


def topk_pairs(packet: NDArr, n: int) -> tuple[NDArr, NDArr, bool]:
    """Indices below n and values of a packet, and whether all values are finite."""
    index = np.cumsum(packet[0].astype(np.int64) + 1) - 1
    value = packet[1].view(ml_dtypes.bfloat16).astype(np.float32)
    used = (value != 0) & (index < n)
    return index[used], value[used], bool(np.isfinite(value).all())


def topk_unpack(packet: NDArr, y: NDArr, finite: NDArr, room: int, n: int, sign: int) -> None:
    """CompressOps.topk_unpack."""
    index, value, finite[0] = topk_pairs(packet, n)
    y[index] += sign * value


def half_pack(x: NDArr, out: NDArr, n: int, bfloat16: int) -> None:
    """CompressOps.half_pack."""
    with np.errstate(over="ignore"):
        rounded: NDArr = x.astype(BFLOAT16 if bfloat16 else np.float16)
    out[...] = rounded.view(np.uint16)


def half_unpack(x: NDArr, y: NDArr, n: int, bfloat16: int, sign: int) -> None:
    """CompressOps.half_unpack."""
    _put(x.view(BFLOAT16 if bfloat16 else np.float16).astype(np.float32), y, sign)
