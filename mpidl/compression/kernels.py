"""The C kernels of kernels/cpu/compress.c, or NumPy where they could not be built; for arrays on a GPU those of compress.cu."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mpidl.backend.kernels import load_library
from mpidl.collectives.engine.reduction import BFLOAT16
from mpidl.comm.transport import array_module, is_device
from mpidl.compression import device
from mpidl.errors import BackendError

_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64
_SIGNATURES: dict[str, list[Any]] = {
    "mpidl_int8_pack": [_POINTER, _COUNT, _COUNT, ctypes.c_uint32, _POINTER, _POINTER],
    "mpidl_int8_unpack": [_POINTER, _POINTER, _COUNT, _COUNT, ctypes.c_int, _POINTER],
    "mpidl_sign_pack": [_POINTER, _COUNT, _COUNT, _POINTER, _POINTER],
    "mpidl_sign_unpack": [_POINTER, _POINTER, _COUNT, _COUNT, ctypes.c_int, _POINTER],
    "mpidl_add_and_keep": [_POINTER, _POINTER, _COUNT],
    "mpidl_topk": [_POINTER, _COUNT, _COUNT, _POINTER, _POINTER],
    "mpidl_topk_feedback": [_POINTER, _POINTER, _COUNT, _COUNT, _POINTER, _POINTER, _POINTER],
    "mpidl_topk_pack": [_POINTER, _POINTER, _COUNT, _COUNT, _POINTER],
    "mpidl_topk_unpack": [_POINTER, _COUNT, ctypes.c_float, _COUNT, _POINTER],
    "mpidl_half_pack": [_POINTER, _COUNT, ctypes.c_int, _POINTER],
    "mpidl_half_unpack": [_POINTER, _COUNT, ctypes.c_int, ctypes.c_int, _POINTER],
}
RESULTS: dict[str, Any] = {
    "mpidl_topk": ctypes.c_int64,
    "mpidl_topk_feedback": ctypes.c_int64,
    "mpidl_topk_unpack": ctypes.c_int,
}
REACH = 1 << 16  # of a step of 16 bits


@cache
def library() -> Any:
    """The compiled kernels with their signatures, or None."""
    loaded = load_library()
    if loaded is None:
        return None
    for name, arguments in _SIGNATURES.items():
        function = getattr(loaded[0], name)
        function.argtypes, function.restype = arguments, RESULTS.get(name)
    return loaded[0]


def int8_pack(
    x: NDArray[Any], block: int, seed: int, scales: NDArray[Any], q: NDArray[Any]
) -> None:
    """x (n,) float32 -> scales (blocks,) float32 and q (n,) int8, stochastically rounded."""
    if is_device(x):
        device.int8_pack(x, block, seed, scales, q)
        return
    if (c := library()) is not None:
        c.mpidl_int8_pack(
            _address(x), x.size, block, seed & 0xFFFFFFFF, _address(scales), _address(q, np.int8)
        )
        return
    rows = _blocks(x, block)
    scales[...] = np.abs(rows).max(1) / 127
    noise = np.random.default_rng(seed).random(rows.shape, np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.where(scales[:, None] > 0, rows / scales[:, None], 0)
        q[...] = np.clip(np.floor(scaled + noise), -127, 127).reshape(-1)[: x.size]


def int8_unpack(
    scales: NDArray[Any], q: NDArray[Any], block: int, y: NDArray[Any], sign: int = 0
) -> None:
    """y (n,) = q * scale of its block, or y += sign * that."""
    if is_device(y):
        device.int8_unpack(scales, q, block, y, sign)
        return
    if (c := library()) is not None:
        c.mpidl_int8_unpack(
            _address(scales), _address(q, np.int8), q.size, block, sign, _address(y)
        )
        return
    _put(np.repeat(scales, block)[: q.size] * q, y, sign)


def sign_pack(x: NDArray[Any], block: int, scales: NDArray[Any], bits: NDArray[Any]) -> None:
    """x (n,) float32 -> scales (blocks,) and bits (n / 8,) uint8: the sign of each, lowest bit first."""
    if is_device(x):
        device.sign_pack(x, block, scales, bits)
        return
    if (c := library()) is not None:
        c.mpidl_sign_pack(_address(x), x.size, block, _address(scales), _address(bits, np.uint8))
        return
    scales[...] = np.abs(_blocks(x, block)).sum(1) / np.minimum(
        block, x.size - block * np.arange(len(scales))
    )
    bits[...] = np.packbits(x >= 0, bitorder="little")


def sign_unpack(
    scales: NDArray[Any], bits: NDArray[Any], block: int, y: NDArray[Any], sign: int = 0
) -> None:
    """y (n,) = plus or minus the scale of its block, or y += sign * that."""
    if is_device(y):
        device.sign_unpack(scales, bits, block, y, sign)
        return
    if (c := library()) is not None:
        c.mpidl_sign_unpack(
            _address(scales), _address(bits, np.uint8), y.size, block, sign, _address(y)
        )
        return
    signs = np.unpackbits(bits, count=y.size, bitorder="little").astype(np.float32) * 2 - 1
    _put(np.repeat(scales, block)[: y.size] * signs, y, sign)


def topk(x: NDArray[Any], k: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Indices (k,) int32, ascending, and values (k,) of the elements of the largest magnitude."""
    if is_device(x):
        return device.topk(x, k)
    if (c := library()) is not None:
        index, value = np.empty(k, np.int32), np.empty(k, np.float32)
        if c.mpidl_topk(_address(x), x.size, k, _address(index, np.int32), _address(value)) == k:
            return index, value
    chosen = np.sort(np.argpartition(np.abs(x), x.size - k)[x.size - k :]).astype(np.int32)
    return chosen, x[chosen]


def topk_feedback(
    x: NDArray[Any], residual: NDArray[Any], k: int, hint: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """x += residual; residual = x; then as `topk`. hint (1,) uint32: kept from call to call, 0 at first; it saves passes."""
    if not is_device(x) and (c := library()) is not None:
        index, value = np.empty(k, np.int32), np.empty(k, np.float32)
        pointers = [_address(hint, np.uint32), _address(index, np.int32), _address(value)]
        if c.mpidl_topk_feedback(_address(x), _address(residual), x.size, k, *pointers) == k:
            return index, value
        return topk(x, k)
    add_and_keep(x, residual)
    return topk(x, k)


def topk_pack(index: NDArray[Any], value: NDArray[Any], packet: NDArray[Any]) -> None:
    """Indices (k,), ascending, and values into packet (2, room) uint16: steps from index to index, less one; bfloat16 values.

    A step too long for 16 bits goes over stops of value zero on the way; the room that is left is zero.
    """
    if (c := library()) is not None:
        c.mpidl_topk_pack(
            _address(index, np.int32),
            _address(value),
            index.size,
            packet.shape[1],
            _address(packet, np.uint16),
        )
        return
    steps = np.diff(index, prepend=np.int32(-1)) - 1
    places = np.arange(len(index)) + np.cumsum(steps // REACH)
    packet[...] = 0
    packet[0, : places[-1] + 1] = REACH - 1
    packet[0, places] = steps % REACH
    packet[1, places] = value.astype(BFLOAT16).view(np.uint16)


def topk_unpack(packet: NDArray[Any], y: NDArray[Any], sign: int = 1) -> bool:
    """y[index] += sign * value for all of packet (2, room); whether all values are finite."""
    if not is_device(y) and (c := library()) is not None:
        return bool(
            c.mpidl_topk_unpack(
                _address(packet, np.uint16), packet.shape[1], sign, y.size, _address(y)
            )
        )
    where = np.cumsum(packet[0].astype(np.int64) + 1) - 1
    value = packet[1].view(BFLOAT16).astype(np.float32)
    used = (value != 0) & (where < y.size)
    if is_device(y):
        device.scatter_add(where[used], value[used], y, sign)
    else:
        y[where[used]] += sign * value[used]
    return bool(np.isfinite(value).all())


def half_pack(x: NDArray[Any], out: NDArray[Any]) -> None:
    """x (n,) float32 rounded into out (n,) float16 or bfloat16, on the host; beyond the range of float16: infinity."""
    if not is_device(x) and (c := library()) is not None:
        c.mpidl_half_pack(_address(x), x.size, int(out.dtype == BFLOAT16), _address(out, out.dtype))
        return
    with np.errstate(over="ignore"):
        rounded: Any = x.astype(out.dtype)
    out[...] = rounded.get() if is_device(rounded) else rounded


def half_unpack(half: NDArray[Any], y: NDArray[Any], sign: int = 0) -> None:
    """y (n,) float32 = half (n,), float16 or bfloat16 on the host, or y += sign * half."""
    if not is_device(y) and (c := library()) is not None:
        c.mpidl_half_unpack(
            _address(half, half.dtype), half.size, int(half.dtype == BFLOAT16), sign, _address(y)
        )
        return
    _put(array_module(y).asarray(half).astype(np.float32), y, sign)


def add_and_keep(values: NDArray[Any], residual: NDArray[Any]) -> None:
    """values += residual; residual = values."""
    if is_device(values):
        device.add_and_keep(values, residual)
        return
    if (c := library()) is not None:
        c.mpidl_add_and_keep(_address(values), _address(residual), values.size)
        return
    values += residual
    residual[...] = values


def _address(array: NDArray[Any], dtype: DTypeLike = np.float32) -> int:
    """Of an array that C may read as `dtype`. Raises BackendError for another one, or for a view with gaps."""
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise BackendError(
            f"compression takes contiguous arrays of {np.dtype(dtype)}, got {array.dtype} of shape {array.shape}, "
            f"strides {array.strides}",
            where="compression",
            remedy="convert with numpy.ascontiguousarray(array, numpy.float32)",
        )
    return int(array.ctypes.data)


def _blocks(x: NDArray[Any], block: int) -> NDArray[Any]:
    padded = np.zeros(-(-x.size // block) * block, np.float32)
    padded[: x.size] = x
    return padded.reshape(-1, block)


def _put(values: NDArray[Any], y: NDArray[Any], sign: int) -> None:
    if sign:
        y += sign * values
    else:
        y[...] = values
