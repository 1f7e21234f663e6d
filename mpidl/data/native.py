"""The loader's work in C: permutations of many rows and many reads, each by one call.

A call through ctypes does not hold Python's global lock, so that a window is ordered and read while
batches are made from the one before. Without a C library NumPy gives the same order, and `preadv`
the same data.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.backend.binder import Binder
from mpidl.backend.kernels import load_library
from mpidl.backend.signature import C, Kernel

Indices = NDArray[np.int64]
Keys = NDArray[np.uint64]

CALLS: dict[str, Kernel] = {
    "shuffle_rows": Kernel(
        "loader", "x:int64 starts:int64 keys:uint64(rows) rows:size", None, (C,)
    ),
    "read_rows": Kernel(
        "loader",
        "file:size ranges:int64(count*2) offsets:int64(chunks) out:uint8 count:size chunks:size "
        "chunk_rows:size row_bytes:size",
        None,
        (C,),
    ),
}
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@cache
def _bound(name: str) -> tuple[Binder, Any] | None:
    """The checks of a call and the function; None without a C library."""
    loaded = load_library()
    if loaded is None:
        return None
    function = getattr(loaded[0], f"mpidl_{name}")
    function.restype = ctypes.c_int64 if name == "read_rows" else None
    arguments = CALLS[name].arguments
    function.argtypes = [ctypes.c_void_p if a.is_array else ctypes.c_int64 for a in arguments]
    return Binder(name, CALLS[name], np.dtype(np.float32)), function


def _mix(z: Keys) -> Keys:
    """The finalizer of SplitMix64, as in kernels/cpu/loader.c; arithmetic modulo 2^64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def keys(seed: int, *numbers: Indices | int) -> Keys:
    """Keys of permutations: a hash of `seed` and of numbers that arrays broadcast against."""
    found = np.atleast_1d(np.asarray(seed % (1 << 64), np.uint64))
    for number in numbers:
        found = _mix((found + _GOLDEN) ^ _mix(np.atleast_1d(np.asarray(number)).astype(np.uint64)))
    return found


def shuffle_rows(x: Indices, starts: Indices, row_keys: Keys, *, use_c: bool = True) -> None:
    """Shuffle the rows x[starts[r] : starts[r + 1]] in place.

    Args:
        x: (n,) numbers.
        starts: (rows + 1,), not falling, within x; a row has fewer than 2^32 elements.
        row_keys: (rows,) decide the permutations, with the lengths.
        use_c: False: by NumPy, for tests.
    """
    bound = _bound("shuffle_rows") if use_c else None
    if bound is not None:
        binder, function = bound
        function(*binder.pointers((x, starts, row_keys, len(row_keys))))
        return
    lengths = np.diff(starts)
    for i in range(int(lengths.max(initial=0)), 1, -1):
        live = np.flatnonzero(lengths >= i)
        step = np.uint64(i * int(_GOLDEN) % (1 << 64))
        drawn = _mix(row_keys[live] + step) >> np.uint64(32)
        j = starts[live] + ((drawn * np.uint64(i)) >> np.uint64(32)).astype(np.int64)
        last = starts[live] + i - 1
        x[last], x[j] = x[j], x[last]


def read_rows(
    file: int,
    ranges: Indices,
    offsets: Indices,
    out: NDArray[np.uint8],
    *,
    chunk_rows: int,
    row_bytes: int,
    use_c: bool = True,
) -> None:
    """Read ranges of rows of a chunked dataset.

    Args:
        file: Its descriptor.
        ranges: (count, 2): start and stop of each.
        offsets: (chunks,) bytes from the start of the file to each chunk.
        out: As many bytes as the rows have; takes one range after another.
        chunk_rows: Rows in a chunk.
        row_bytes: Size of a row.
        use_c: False: by `os.preadv`, for tests.

    Raises:
        OSError: The file ends too early, or cannot be read.
        ValueError: `out` has another size, or a range lies outside of the chunks.
    """
    wanted = int((ranges[:, 1] - ranges[:, 0]).sum()) * row_bytes
    inside = not len(ranges) or (
        ranges[:, 0].min() >= 0 and ranges[:, 1].max() <= len(offsets) * chunk_rows
    )
    if wanted != len(out) or not inside or (ranges[:, 1] < ranges[:, 0]).any():
        raise ValueError(f"{wanted} bytes of rows do not fit into {len(out)} bytes of memory")
    bound = _bound("read_rows") if use_c else None
    if bound is None:
        memory = out.data
        for start, stop in ranges.tolist():
            while start < stop:
                chunk, within = divmod(start, chunk_rows)
                size = min(stop - start, chunk_rows - within) * row_bytes
                _read_all(file, memory[:size], int(offsets[chunk]) + within * row_bytes)
                start, memory = start + size // row_bytes, memory[size:]
        return
    binder, function = bound
    sizes = (len(ranges), len(offsets), chunk_rows, row_bytes)
    flat = np.ascontiguousarray(ranges).reshape(-1)
    failed = int(function(*binder.pointers((file, flat, offsets, out, *sizes))))
    if failed < 0:
        raise OSError(-failed, os.strerror(-failed))
    if failed > 0:
        raise _ends(failed - 1)


def _read_all(file: int, memory: memoryview, offset: int) -> None:
    while memory:
        count = os.preadv(file, [memory], offset)
        if count == 0:
            raise _ends(offset)
        memory, offset = memory[count:], offset + count


def _ends(offset: int) -> OSError:
    return OSError(f"the file ends at byte {offset}, before the end of its data")
