"""Reads rows of an unfiltered HDF5 dataset straight from where they lie in the file.

HDF5 says where each chunk lies (H5Dget_chunk_info); `preadv` then copies rows into the caller's memory. Unlike an H5Dread this
does not hold Python's global lock, so that a window is read while batches are gathered from the one before.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class DirectRows:
    """The rows of one dataset in one file that is open for reading as descriptor `handle`. See `make` for what is possible."""

    def __init__(
        self, dataset: Any, handle: int, rows_per_chunk: int, row_bytes: int, base: int | None
    ) -> None:
        self._id, self._handle, self._rest = dataset.id, handle, (0,) * (dataset.ndim - 1)
        self._rows, self._row_bytes = rows_per_chunk, row_bytes
        self._offsets: dict[int, int] = {} if base is None else {0: base}

    @staticmethod
    def make(dataset: Any, handle: int, wanted: np.dtype[Any]) -> DirectRows | None:
        """None where HDF5 has to do the work: filters, another byte order, chunks that cut samples, data not stored yet."""
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
            return (
                None if base is None else DirectRows(dataset, handle, len(dataset), row_bytes, base)
            )
        if dataset.chunks[1:] != dataset.shape[1:]:
            return None
        return DirectRows(dataset, handle, dataset.chunks[0], row_bytes, None)

    def _offset(self, chunk: int) -> int:
        found = self._offsets.get(chunk)
        if found is None:
            place = self._id.get_chunk_info_by_coord((chunk * self._rows, *self._rest)).byte_offset
            if place is None:
                raise OSError(f"chunk {chunk} is not stored in the file")
            found = self._offsets[chunk] = int(place)
        return found

    def read(self, ranges: Sequence[tuple[int, int]], out: NDArray[Any]) -> None:
        """The row ranges one after another into `out`, C-contiguous. Raises OSError where the file ends too early."""
        memory = out.reshape(-1).view(np.uint8).data
        done = 0
        for start, stop in ranges:
            while start < stop:
                chunk, within = divmod(start, self._rows)
                count = min(stop - start, self._rows - within)
                self._read_all(
                    memory[done : done + count * self._row_bytes],
                    self._offset(chunk) + within * self._row_bytes,
                )
                start, done = start + count, done + count * self._row_bytes

    def _read_all(self, memory: memoryview, offset: int) -> None:
        while memory:
            count = os.preadv(self._handle, [memory], offset)
            if count == 0:
                raise OSError(f"the file ends at byte {offset}, before the end of its data")
            memory, offset = memory[count:], offset + count
