"""The kernels of `mpidl.compression.kernels` for gradients on a GPU: packed there, so that only packets come to the host.

Full-size arrays are device arrays of float32; packets, indices and their values are host arrays.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.backend import Array, Ops

BINS = 1 << 16
HostArray = NDArray[Any]


def _ops(array: Array) -> Ops:
    """A launcher on the array's device, which becomes that of this thread too."""
    array.device.use()
    return _on(int(array.device.id))


@cache
def _on(device: int) -> Ops:
    from mpidl.backend.cupy_ops import CupyOps

    return CupyOps(device)


def int8_pack(x: Array, block: int, seed: int, scales: HostArray, q: HostArray) -> None:
    """As `kernels.int8_pack`."""
    _pack("int8_pack", x, block, scales, q.view(np.uint8), seed & 0xFFFFFFFF)


def sign_pack(x: Array, block: int, scales: HostArray, bits: HostArray) -> None:
    """As `kernels.sign_pack`."""
    _pack("sign_pack", x, block, scales, bits)


def _pack(name: str, x: Array, block: int, scales: HostArray, codes: HostArray, *more: int) -> None:
    ops = _ops(x)
    device_scales, device_codes = (
        ops.xp.empty(scales.shape, np.float32),
        ops.xp.empty(codes.shape, np.uint8),
    )
    ops.launch(name, x, device_scales, device_codes, x.size, block, scales.size, *more)
    scales[...], codes[...] = ops.to_host(device_scales), ops.to_host(device_codes)


def int8_unpack(scales: HostArray, q: HostArray, block: int, y: Array, sign: int = 0) -> None:
    """As `kernels.int8_unpack`."""
    _unpack("int8_unpack", scales, q.view(np.uint8), block, y, sign)


def sign_unpack(scales: HostArray, bits: HostArray, block: int, y: Array, sign: int = 0) -> None:
    """As `kernels.sign_unpack`."""
    _unpack("sign_unpack", scales, bits, block, y, sign)


def _unpack(
    name: str, scales: HostArray, codes: HostArray, block: int, y: Array, sign: int
) -> None:
    ops = _ops(y)
    ops.launch(name, ops.to_device(scales), ops.to_device(codes), y, y.size, block, sign)


def add_and_keep(values: Array, residual: Array) -> None:
    """As `kernels.add_and_keep`."""
    _ops(values).launch("add_and_keep", values, residual, values.size)


def topk(x: Array, k: int) -> tuple[HostArray, HostArray]:
    """As `kernels.topk`, by a histogram of magnitudes and a second pass that collects."""
    ops = _ops(x)
    counts = ops.xp.zeros(BINS, np.int64)
    ops.launch("topk_count", x, counts, x.size)
    reaching = np.cumsum(ops.to_host(counts)[::-1])[::-1]  # elements of each class and above
    least = int(np.flatnonzero(reaching >= k)[-1])
    places, found = ops.xp.empty(int(reaching[least]), np.int64), ops.xp.zeros(1, np.int64)
    ops.launch("topk_select", x, places, found, x.size, least)
    ordered = np.sort(ops.to_host(places))
    values = ops.to_host(x[ops.to_device(ordered)])
    magnitudes = np.abs(values).view(np.uint32) >> 15
    surplus = np.flatnonzero(magnitudes == least)[k - int((magnitudes > least).sum()) :]
    return np.delete(ordered, surplus).astype(np.int32), np.delete(values, surplus)


def scatter_add(places: HostArray, values: HostArray, y: Array, sign: int) -> None:
    """y[places] += sign * values; no place occurs twice."""
    ops = _ops(y)
    given = (
        ops.to_device(places.astype(np.int64)),
        ops.to_device(np.ascontiguousarray(values, np.float32)),
    )
    ops.launch("scatter_add", *given, y, places.size, sign)
