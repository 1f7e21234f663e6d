"""Reads rows of an unfiltered HDF5 dataset at their offsets in the file.

HDF5 says where each chunk lies (H5Dget_chunk_info); one call of C then copies all rows into the
caller's memory. Unlike an H5Dread this does not hold Python's global lock, so that a window is read
while batches are gathered from the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mpidl.data.native import Indices, place_rows, read_rows

# The place of one chunk is searched from the first one on: 18 ns a chunk, for each of them
MOST_CHUNKS = 20_000


class Rows(Protocol):
    """Reads rows of one file at their offsets in it: `mpidl.data.native`, or what is sealed."""

    def read_rows(
        self,
        ranges: Indices,
        offsets: Indices,
        out: NDArray[np.uint8],
        *,
        chunk_rows: int,
        row_bytes: int,
    ) -> None:
        """See `mpidl.data.native.read_rows`."""

    def place_rows(
        self,
        ranges: Indices,
        offsets: Indices,
        place: Indices,
        out: NDArray[np.uint8],
        *,
        chunk_rows: int,
        threads: int = 1,
    ) -> None:
        """See `mpidl.data.native.place_rows`."""


class PlainRows:
    """Of a file descriptor."""

    def __init__(self, file: int) -> None:
        self.read_rows = partial(read_rows, file)
        self.place_rows = partial(place_rows, file)


class DirectRows:
    """The rows of one dataset; made by `make`, where that is possible.

    Args:
        dataset: An h5py dataset.
        file: Reads its file.
        rows_per_chunk: Rows that are contiguous in the file.
        row_bytes: Size of one row.
        base: Offset of a contiguous dataset, None for a chunked one.
    """

    def __init__(
        self, dataset: Any, file: Rows, rows_per_chunk: int, row_bytes: int, base: int | None
    ) -> None:
        self._id = dataset.id
        self._file = file
        self._origin = (0,) * (dataset.ndim - 1)
        self._rows = rows_per_chunk
        self._row_bytes = row_bytes
        self._offsets = np.full(-(-len(dataset) // rows_per_chunk), -1 if base is None else base)
        self._located = base is not None

    @staticmethod
    def make(dataset: Any, file: Rows, wanted: np.dtype[Any]) -> DirectRows | None:
        """Direct access to a dataset.

        Args:
            dataset: An h5py dataset.
            file: Reads its file.
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
            return DirectRows(dataset, file, len(dataset), row_bytes, base)
        chunks = -(-len(dataset) // dataset.chunks[0])
        if dataset.chunks[1:] != dataset.shape[1:] or chunks > MOST_CHUNKS:
            return None
        if dataset.id.get_num_chunks() < chunks:
            return None
        return DirectRows(dataset, file, dataset.chunks[0], row_bytes, None)

    def _locate(self, ranges: Indices) -> None:
        """Ask HDF5, once for each, where the chunks of row ranges lie in the file."""
        for start, stop in (ranges // self._rows).tolist():
            missing = np.flatnonzero(self._offsets[start : stop + 1] < 0) + start
            for chunk in missing.tolist():
                corner = (chunk * self._rows, *self._origin)
                offset = self._id.get_chunk_info_by_coord(corner).byte_offset
                if offset is None:
                    raise OSError(f"chunk {chunk} is not stored in the file")
                self._offsets[chunk] = offset
        self._located = bool((self._offsets >= 0).all())

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
            out: C-contiguous; takes the rows.
            place: Which row of `out` each becomes; None: one after another.
            threads: That read at once, where there are places.

        Raises:
            OSError: The file ends too early, or cannot be read.
        """
        flat = np.array(ranges, np.int64).reshape(-1, 2)
        if not self._located:
            self._locate(flat)
        memory = out.reshape(-1).view(np.uint8)
        rows, row_bytes = self._rows, self._row_bytes
        if place is None:
            self._file.read_rows(flat, self._offsets, memory, chunk_rows=rows, row_bytes=row_bytes)
        else:
            table = memory.reshape(len(out), row_bytes)
            self._file.place_rows(
                flat, self._offsets, place, table, chunk_rows=rows, threads=threads
            )
