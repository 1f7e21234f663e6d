"""Reads rows of an unfiltered HDF5 dataset at their offsets in the file.

HDF5 says where each chunk lies (H5Dget_chunk_info); the C function `mpidl_read_rows` then reads
each row straight to its place in the caller's memory. Unlike an H5Dread this does not hold Python's
global lock, so that a window is read while batches of the one before are used, and a window comes
in the order of its batches, which saves the copy that would gather them.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.backend.kernels import load_library

Indices = NDArray[np.int64]
FILE_ENDS = -1  # as in kernels/cpu/rows.c
ENDS = "the file ends before the end of its data"


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
        wanted = np.array(ranges, np.int64).reshape(-1, 2)
        rows = int((wanted[:, 1] - wanted[:, 0]).sum())
        fits = out.flags.c_contiguous and out.nbytes == len(out) * self._row_bytes
        if place is None:
            fits &= rows <= len(out)
        else:
            fits &= rows == len(place) and place.dtype == np.int64 and place.flags.c_contiguous
            fits &= not rows or (place.min() >= 0 and place.max() < len(out))
        if not fits:
            raise ValueError(f"{rows} rows of {self._row_bytes} bytes into {out.shape} {out.dtype}")
        if rows:
            self._locate(int(wanted.min()) // self._rows, (int(wanted.max()) - 1) // self._rows)
            self._read(wanted, rows, place, out, threads)

    def _locate(self, first: int, last: int) -> None:
        """Ask HDF5 where the chunks `first` to `last` are."""
        for chunk in (first + np.flatnonzero(self._offsets[first : last + 1] < 0)).tolist():
            corner = (chunk * self._rows, *self._origin)
            offset = self._id.get_chunk_info_by_coord(corner).byte_offset
            if offset is None:
                raise OSError(f"chunk {chunk} is not stored in the file")
            self._offsets[chunk] = offset

    def _read(
        self, ranges: Indices, rows: int, place: Indices | None, out: NDArray[Any], threads: int
    ) -> None:
        function = _function()
        if function is None:
            self._read_without_c(ranges, place, out)
            return
        status = function(
            *(self._handle, ranges.ctypes.data, len(ranges), rows),
            *(self._offsets.ctypes.data, self._rows, self._row_bytes),
            *(None if place is None else place.ctypes.data, out.ctypes.data, threads),
        )
        if status == FILE_ENDS:
            raise OSError(ENDS)
        if status:
            raise OSError(status, os.strerror(status))

    def _read_without_c(self, ranges: Indices, place: Indices | None, out: NDArray[Any]) -> None:
        flat = out.reshape(-1).view(np.uint8).reshape(len(out), self._row_bytes)
        done = 0
        for start, stop in ranges.tolist():
            while start < stop:
                chunk, within = divmod(start, self._rows)
                count = min(stop - start, self._rows - within)
                here = slice(done, done + count)
                part = flat[here] if place is None else np.empty_like(flat[here])
                offset = int(self._offsets[chunk]) + within * self._row_bytes
                self._read_all(part.reshape(-1).data, offset)
                if place is not None:
                    flat[place[here]] = part
                start, done = start + count, done + count

    def _read_all(self, memory: memoryview, offset: int) -> None:
        while memory:
            count = os.preadv(self._handle, [memory], offset)
            if count == 0:
                raise OSError(ENDS)
            memory, offset = memory[count:], offset + count


@cache
def _function() -> Any:
    """The C function `mpidl_read_rows`; None where the C kernels were not built."""
    loaded = load_library()
    if loaded is None:
        return None
    function = loaded[0].mpidl_read_rows
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    function.argtypes = [
        *(ctypes.c_int, pointer, number, number),
        *(pointer, number, number),
        *(pointer, pointer, ctypes.c_int),
    ]
    function.restype = ctypes.c_int
    return function
