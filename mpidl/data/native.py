"""The loader's work in C: permutations of many rows and many reads, each by one call.

A call through ctypes does not hold Python's global lock, so that a window is ordered and read while
batches are made from the one before. Without a C library NumPy gives the same order, and `preadv`
the same data.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
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
    "place_rows": Kernel(
        "rows",
        "file:size ranges:int64(count*2) offsets:int64(chunks) place:int64(rows) out:uint8 "
        "count:size chunks:size chunk_rows:size row_bytes:size rows:size threads:size",
        None,
        (C,),
    ),
}
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@cache
def _bound(name: str) -> tuple[Binder, Any] | None:
    return bind(name, CALLS[name])


def bind(name: str, kernel: Kernel) -> tuple[Binder, Any] | None:
    """The checks of a call and the function `mpidl_NAME`; None without a C library."""
    loaded = load_library()
    if loaded is None:
        return None
    function = getattr(loaded[0], f"mpidl_{name}")
    function.restype = ctypes.c_int64 if name != "shuffle_rows" else None
    function.argtypes = [
        ctypes.c_void_p if a.is_array else ctypes.c_int64 for a in kernel.arguments
    ]
    return Binder(name, kernel, np.dtype(np.float32)), function


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
    if count_rows(ranges, len(offsets) * chunk_rows) * row_bytes != len(out):
        raise ValueError(f"the rows do not fit into {len(out)} bytes of memory")
    bound = _bound("read_rows") if use_c else None
    if bound is None:
        memory = out.data
        for offset, size in runs(ranges, offsets, chunk_rows, row_bytes):
            _read_all(file, memory[:size], offset)
            memory = memory[size:]
        return
    binder, function = bound
    sizes = (len(ranges), len(offsets), chunk_rows, row_bytes)
    flat = np.ascontiguousarray(ranges).reshape(-1)
    raise_failed(int(function(*binder.pointers((file, flat, offsets, out, *sizes)))))


def place_rows(
    file: int,
    ranges: Indices,
    offsets: Indices,
    place: Indices,
    out: NDArray[np.uint8],
    *,
    chunk_rows: int,
    threads: int = 1,
    use_c: bool = True,
) -> None:
    """As `read_rows`, each row to a place of its own.

    Args:
        file: Its descriptor.
        ranges: (count, 2): start and stop of each.
        offsets: (chunks,) bytes from the start of the file to each chunk.
        place: (rows,) which row of `out` each of the rows becomes.
        out: (room, bytes of a row).
        chunk_rows: Rows in a chunk.
        threads: That read at once.
        use_c: False: by `os.preadv`, for tests.

    Raises:
        OSError: The file ends too early, or cannot be read.
        ValueError: A place lies outside of `out`, or a range outside of the chunks.
    """
    rows, (room, row_bytes) = count_rows(ranges, len(offsets) * chunk_rows), out.shape
    if rows != len(place) or (rows and (place.min() < 0 or place.max() >= room)):
        raise ValueError(f"{len(place)} places for {rows} rows do not fit into {room} rows")
    bound = _bound("place_rows") if use_c else None
    if bound is None:
        read = np.empty((rows, row_bytes), np.uint8)
        flat = read.reshape(-1)
        read_rows(
            file, ranges, offsets, flat, chunk_rows=chunk_rows, row_bytes=row_bytes, use_c=False
        )
        out[place] = read
        return
    binder, function = bound
    arrays = (np.ascontiguousarray(ranges).reshape(-1), offsets, np.ascontiguousarray(place), out)
    counts = (len(ranges), len(offsets), chunk_rows, row_bytes, rows, threads)
    raise_failed(int(function(*binder.pointers((file, *arrays, *counts)))))


def runs(
    ranges: Indices, offsets: Indices, chunk_rows: int, row_bytes: int
) -> Iterator[tuple[int, int]]:
    """Where rows lie in a file: offset and size in bytes of what lies together."""
    offset = size = 0
    for start, stop in ranges.tolist():
        while start < stop:
            chunk, within = divmod(start, chunk_rows)
            rows = min(stop - start, chunk_rows - within)
            here = int(offsets[chunk]) + within * row_bytes
            if here != offset + size:
                if size:
                    yield offset, size
                offset, size = here, 0
            size += rows * row_bytes
            start += rows
    if size:
        yield offset, size


def count_rows(ranges: Indices, most: int) -> int:
    """Rows in ranges of at most `most` rows."""
    inside = not len(ranges) or (ranges[:, 0].min() >= 0 and ranges[:, 1].max() <= most)
    if not inside or (ranges[:, 1] < ranges[:, 0]).any():
        raise ValueError(f"the ranges do not fit into {most} rows")
    return int((ranges[:, 1] - ranges[:, 0]).sum())


def raise_failed(failed: int) -> None:
    """The error for what a reading function returned."""
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
