"""Reads rows of a sealed file at their offsets in its plaintext."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpidl.data.native import Indices, count_rows, runs
from mpidl.security.sealed_file import SealedFile

PIECE = 4 << 20  # bytes that are decrypted before they are placed


class SealedRows:
    """As `mpidl.data.native` reads rows of a plain file."""

    def __init__(self, file: SealedFile) -> None:
        self._file = file

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
        if count_rows(ranges, len(offsets) * chunk_rows) * row_bytes != len(out):
            raise ValueError(f"the rows do not fit into {len(out)} bytes of memory")
        memory = out.data
        for offset, size in runs(ranges, offsets, chunk_rows, row_bytes):
            self._file.read_into(memory[:size], offset)
            memory = memory[size:]

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
        row_bytes, row = out.shape[1], 0
        most = max(1, PIECE // row_bytes)
        held = np.empty((most, row_bytes), np.uint8)
        for offset, size in runs(ranges, offsets, chunk_rows, row_bytes):
            for start in range(0, size // row_bytes, most):
                count = min(most, size // row_bytes - start)
                self._file.read_into(held[:count].reshape(-1).data, offset + start * row_bytes)
                out[place[row : row + count]] = held[:count]
                row += count
