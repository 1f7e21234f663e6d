"""Reads rows of an unfiltered HDF5 dataset at their offsets in the file.

HDF5 says where each chunk lies (H5Dget_chunk_info); `preadv` then copies rows into the caller's
memory. Unlike an H5Dread this does not hold Python's global lock, so that a window is read while
batches are gathered from the one before.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The place of one chunk is searched from the first one on: 18 ns a chunk, for each of them
MOST_CHUNKS = 20_000


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
        self._offsets: dict[int, int] = {} if base is None else {0: base}

    @staticmethod
    def make(dataset: Any, handle: int, wanted: np.dtype[Any]) -> DirectRows | None:
        """Direct access to a dataset.

        Args:
            dataset: An h5py dataset.
            handle: File descriptor of its file.
            wanted: The dtype to read.

        Returns:
            None where HDF5 has to do the work: filters, another byte order, chunks that divide
            samples or are many, data not stored yet.
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
        chunks = -(-len(dataset) // dataset.chunks[0])
        if dataset.chunks[1:] != dataset.shape[1:] or chunks > MOST_CHUNKS:
            return None
        if dataset.id.get_num_chunks() < chunks:
            return None
        return DirectRows(dataset, handle, dataset.chunks[0], row_bytes, None)

    def _offset(self, chunk: int) -> int:
        found = self._offsets.get(chunk)
        if found is None:
            corner = (chunk * self._rows, *self._origin)
            offset = self._id.get_chunk_info_by_coord(corner).byte_offset
            if offset is None:
                raise OSError(f"chunk {chunk} is not stored in the file")
            found = self._offsets[chunk] = int(offset)
        return found

    def read(self, ranges: Sequence[tuple[int, int]], out: NDArray[Any]) -> None:
        """Read row ranges.

        Args:
            ranges: (start, stop) of each.
            out: C-contiguous; takes the rows one after another.

        Raises:
            OSError: The file ends too early, or cannot be read.
        """
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
