"""Reads rows of an unfiltered HDF5 dataset at their offsets in the file.

HDF5 says where each chunk lies (H5Dget_chunk_info); the C function `mpidl_read_rows` then reads
each row straight to its place in the caller's memory. Unlike an H5Dread this does not hold Python's
global lock, so that a window is read while batches of the one before are used, and a window comes
in the order of its batches, which saves the copy that would gather them.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.backend.kernels import load_library

Indices = NDArray[np.int64]
FILE_ENDS = -1  # as in kernels/cpu/rows.c
SEGMENT_BYTES = 4 << 20  # what one of several threads reads at a time


class DirectRows:
    """The rows of one dataset; made by `make`, where that is possible.

    Args:
        dataset: An h5py dataset.
        handle: File descriptor of its file, open for reading.
        rows_per_chunk: Rows that are contiguous in the file.
        row_bytes: Size of one row.
        base: Offset of a contiguous dataset, None for a chunked one.
    """

    def __init__(
        self, dataset: Any, handle: int, rows_per_chunk: int, row_bytes: int, base: int | None
    ) -> None:
        self._id = dataset.id
        self._handle = handle
        self._origin = (0,) * (dataset.ndim - 1)
        self._rows = rows_per_chunk
        self._row_bytes = row_bytes
        chunks = -(-len(dataset) // rows_per_chunk)
        self._offsets: Indices = np.full(chunks, -1, np.int64)  # -1: not asked yet
        if base is not None:
            self._offsets[0] = base

    @staticmethod
    def make(dataset: Any, handle: int, wanted: np.dtype[Any]) -> DirectRows | None:
        """Direct access to a dataset.

        Args:
            dataset: An h5py dataset.
            handle: File descriptor of its file.
            wanted: The dtype to read.

        Returns:
            None where HDF5 has to do the work: filters, another byte order, chunks that divide
            samples, data not stored yet.
        """
        row_bytes = dataset.dtype.itemsize * int(np.prod(dataset.shape[1:], dtype=np.int64))
        if (
            dataset.dtype != wanted
            or dataset.id.get_create_plist().get_nfilters()
            or not dataset.size
            or not row_bytes
        ):
            return None
        if dataset.chunks is None:
            base = dataset.id.get_offset()
            if base is None:
                return None
            return DirectRows(dataset, handle, len(dataset), row_bytes, base)
        if dataset.chunks[1:] != dataset.shape[1:]:
            return None
        return DirectRows(dataset, handle, dataset.chunks[0], row_bytes, None)

    def read(
        self,
        ranges: Sequence[tuple[int, int]],
        out: NDArray[Any],
        place: Indices | None = None,
        threads: int = 1,
    ) -> None:
        """Read row ranges.

        Args:
            ranges: (start, stop) of each.
            out: C-contiguous, of the dataset's dtype.
            place: Where in `out` each of the rows goes, in [0, len(out)); None: one after another.
            threads: That read.

        Raises:
            OSError: The file ends too early, or cannot be read.
        """
        segments = self._segments(ranges, threads)
        rows = int(segments[:, 1].sum())
        fits = out.flags.c_contiguous and out.nbytes == len(out) * self._row_bytes
        if place is None:
            fits &= rows <= len(out)
        else:
            fits &= rows == len(place) and place.dtype == np.int64 and place.flags.c_contiguous
            fits &= not rows or (place.min() >= 0 and place.max() < len(out))
        if not fits:
            raise ValueError(f"{rows} rows of {self._row_bytes} bytes into {out.shape} {out.dtype}")
        _reader()(self._handle, segments, self._row_bytes, place, out, threads)

    def _segments(self, ranges: Sequence[tuple[int, int]], threads: int) -> Indices:
        """(offset in the file, rows, rows before) of each contiguous part."""
        starts, stops = np.array(ranges, np.int64).reshape(-1, 2).T
        length = self._rows
        if threads > 1 and len(self._offsets) == 1:
            length = max(1, min(length, SEGMENT_BYTES // self._row_bytes))
        first = starts // length
        parts = np.maximum(0, (stops - 1) // length - first + 1) * (stops > starts)
        at = np.repeat(first - (np.cumsum(parts) - parts), parts) + np.arange(parts.sum())
        low = np.maximum(np.repeat(starts, parts), at * length)
        high = np.minimum(np.repeat(stops, parts), (at + 1) * length)
        return self._located(low, high)

    def _located(self, low: Indices, high: Indices) -> Indices:
        chunk = low // self._rows
        for missing in np.unique(chunk[self._offsets[chunk] < 0]):
            corner = (int(missing) * self._rows, *self._origin)
            offset = self._id.get_chunk_info_by_coord(corner).byte_offset
            if offset is None:
                raise OSError(f"chunk {missing} is not stored in the file")
            self._offsets[missing] = offset
        rows = high - low
        offsets = self._offsets[chunk] + (low - chunk * self._rows) * self._row_bytes
        return np.stack([offsets, rows, np.cumsum(rows) - rows], axis=1)


_Read = Callable[[int, Indices, int, Indices | None, NDArray[Any], int], None]


@cache
def _reader() -> _Read:
    """The C function, or Python that does the same."""
    loaded = load_library()
    if loaded is None:
        return _read_without_c
    function = loaded[0].mpidl_read_rows
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    function.argtypes = [ctypes.c_int, pointer, number, number, pointer, pointer, ctypes.c_int]
    function.restype = ctypes.c_int

    def read(
        handle: int,
        segments: Indices,
        row_bytes: int,
        place: Indices | None,
        out: NDArray[Any],
        threads: int,
    ) -> None:
        where = None if place is None else place.ctypes.data
        numbers = segments.ctypes.data, len(segments), row_bytes
        status = function(handle, *numbers, where, out.ctypes.data, threads)
        if status == FILE_ENDS:
            raise OSError("the file ends before the end of its data")
        if status:
            raise OSError(status, os.strerror(status))

    return read


def _read_without_c(
    handle: int,
    segments: Indices,
    row_bytes: int,
    place: Indices | None,
    out: NDArray[Any],
    threads: int,
) -> None:
    flat = out.reshape(-1).view(np.uint8).reshape(-1, row_bytes)
    for offset, rows, first in segments.tolist():
        part = flat[first : first + rows] if place is None else np.empty((rows, row_bytes), "u1")
        memory = part.reshape(-1).data
        while memory:
            count = os.preadv(handle, [memory], offset)
            if count == 0:
                raise OSError("the file ends before the end of its data")
            memory, offset = memory[count:], offset + count
        if place is not None:
            flat[place[first : first + rows]] = part
