"""One HDF5 file that all ranks fill, each its own chunks of samples; an interrupted run goes on.

Rank 0 makes the file with all of its space: datasets are contiguous and lie where HDF5 says. Ranks
then write rows at these offsets, with no HDF5 and no MPI between them, so that a killed rank leaves
a file that can be opened. The dataset `done` has a byte for each chunk, which becomes 1 once the
chunk is on disk. The file has its final name when all of them are.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.comm.context import Context
from mpidl.data import hdf5
from mpidl.data.hdf5 import h5py
from mpidl.errors import DataError
from mpidl.files import partial_path, publish, reserve, write_atomically, writing

Columns = Mapping[str, NDArray[Any]]
DONE, SUMS, ABOUT = "done", "sums", "prediction"
SYNC_SECONDS = 5.0  # a chunk counts as done after it was forced to disk: not more often


@dataclass(frozen=True)
class Layout:
    """What the file holds.

    Attributes:
        samples: N.
        chunk: Samples that are written together.
        columns: Shape and dtype of each array, without the samples.
        sums: Numbers that each chunk adds to the metrics.
        about: What the predictions are of, compared before a run goes on.
        notes: For readers: attributes, and datasets of names for lists.
    """

    samples: int
    chunk: int
    columns: Mapping[str, tuple[tuple[int, ...], str]]
    sums: int
    about: Mapping[str, Any]
    notes: Mapping[str, Any]

    @property
    def chunks(self) -> int:
        """Their number."""
        return -(-self.samples // self.chunk)

    @property
    def row_bytes(self) -> int:
        """Bytes of a sample."""
        return sum(
            int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            for shape, dtype in self.columns.values()
        )

    @property
    def datasets(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of everything in the file."""
        found = {name: ((self.samples, *shape), d) for name, (shape, d) in self.columns.items()}
        found[DONE] = (self.chunks,), "|u1"
        if self.sums:
            found[SUMS] = (self.chunks, self.sums), "<f8"
        return found

    def rows(self, chunk: int) -> tuple[int, int]:
        """The samples of a chunk."""
        return chunk * self.chunk, min((chunk + 1) * self.chunk, self.samples)


class Store:
    """The file of a prediction. Collective.

    Args:
        final: Its name when it is complete.
        layout: What it holds.
        context: The ranks.
        restart: Leave what an interrupted run has written, and begin anew.

    Attributes:
        path: Where it is written.
        pending: Chunks that are still to be computed.

    Raises:
        DataError: The file cannot be written, or an interrupted run was of other data.
    """

    def __init__(self, final: Path, layout: Layout, context: Context, *, restart: bool) -> None:
        self.final = final
        self.path = partial_path(final)
        self.layout = layout
        self._context = context
        self._offsets: dict[str, int] = context.on_root(
            lambda: self._prepare(restart), f"preparing {final}"
        )
        with context.fail_together("opening the file of the predictions"), writing(self.path):
            self._handle = os.open(self.path, os.O_RDWR)
        done = np.frombuffer(os.pread(self._handle, layout.chunks, self._offsets[DONE]), np.uint8)
        # all ranks see the same ones: rank 0 says which
        self.pending: NDArray[np.int64] = context.bcast_object(np.flatnonzero(done != 1))
        self._unsynced: list[int] = []
        self._synced = time.monotonic()

    def _prepare(self, restart: bool) -> dict[str, int]:
        """Make the file, or take up that of an interrupted run; the offsets of its datasets."""
        if self.path.exists() and not restart:
            self._check_same()
        else:
            with writing(self.path):
                self._make()
        with hdf5.open_file(self.path) as file:
            # no samples: HDF5 gives no offset, and nothing is written
            return {name: file[name].id.get_offset() or 0 for name in self.layout.datasets}

    def _make(self) -> None:
        layout = self.layout
        with write_atomically(self.path) as temporary:
            with hdf5.open_file(temporary, "w") as file:
                for name, (shape, dtype) in layout.datasets.items():
                    _allocate(file, name, shape, np.dtype(dtype), zeros=name in (DONE, SUMS))
                for key, value in layout.notes.items():
                    if isinstance(value, list):  # an attribute holds 64 KiB: some 4,000 names
                        file.create_dataset(key, data=value, dtype=h5py.string_dtype())
                    else:
                        file.attrs[key] = value
                file.attrs[ABOUT] = json.dumps(dict(layout.about), sort_keys=True)
            reserve(temporary, temporary.stat().st_size)

    def _check_same(self) -> None:
        with hdf5.open_file(self.path) as file:
            found = file.attrs.get(ABOUT)
            try:
                known = json.loads(found) if isinstance(found, str) else {}
            except ValueError:
                known = {}
            # ranks write at offsets: a dataset of another size would be written past its end
            fits = all(
                isinstance(dataset := file.get(name), h5py.Dataset)
                and (dataset.shape, dataset.dtype.str) == (shape, dtype)
                and dataset.chunks is None
                and not dataset.external
                and (dataset.id.get_offset() is not None or 0 in shape)
                for name, (shape, dtype) in self.layout.datasets.items()
            )
        wanted = json.loads(json.dumps(dict(self.layout.about)))
        other = [
            key for key in wanted if not isinstance(known, dict) or known.get(key) != wanted[key]
        ]
        if not fits and not other:
            other = ["layout"]
        if other:
            raise DataError(
                f"an interrupted prediction is there, with another {', '.join(other)}",
                where=str(self.path),
                remedy="give the same command as before, or begin anew with --restart",
            )

    def write(self, chunk: int, columns: Columns, sums: NDArray[np.float64] | None) -> None:
        """Write the predictions of a chunk.

        Args:
            chunk: Its number.
            columns: Arrays (samples of the chunk, ...).
            sums: What it adds to the metrics.
        """
        low, high = self.layout.rows(chunk)
        with writing(self.path):
            for name, (shape, dtype) in self.layout.columns.items():
                array = np.ascontiguousarray(columns[name], dtype).reshape(high - low, *shape)
                row = array.nbytes // max(high - low, 1)
                self._write(array, self._offsets[name] + low * row)
            if sums is not None:
                self._write(sums, self._offsets[SUMS] + chunk * sums.nbytes)
            self._unsynced.append(chunk)
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self._mark()

    def _write(self, array: NDArray[Any], offset: int) -> None:
        memory = array.reshape(-1).view(np.uint8).data
        while memory:
            count = os.pwrite(self._handle, memory, offset)
            memory, offset = memory[count:], offset + count

    def _mark(self) -> None:
        """Force chunks to disk, and then mark them as done."""
        os.fdatasync(self._handle)
        for chunk in self._unsynced:
            os.pwrite(self._handle, b"\1", self._offsets[DONE] + chunk)
        self._unsynced.clear()
        self._synced = time.monotonic()

    def close(self) -> None:
        """Mark what this rank has written."""
        with writing(self.path):
            if self._unsynced:
                self._mark()
            os.close(self._handle)

    def sums(self) -> NDArray[np.float64]:
        """The sums of all chunks together, in their order; on every rank. Collective."""

        def read() -> NDArray[np.float64]:
            with hdf5.open_file(self.path) as file:
                return np.asarray(file[SUMS][...].sum(axis=0), np.float64)

        found: NDArray[np.float64] = self._context.on_root(read, f"reading {self.path}")
        return found

    def finish(self) -> None:
        """Give the file its final name. For rank 0, once all ranks have closed it."""
        with hdf5.open_file(self.path) as file:
            missing = np.flatnonzero(file[DONE][...] != 1)
        if len(missing):
            raise DataError(
                f"{len(missing)} chunk(s) are not done, the first is {missing[0]}",
                where=str(self.path),
                remedy="give the same command again",
            )
        with writing(self.final):
            publish(self.path, self.final)


def _allocate(
    file: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], *, zeros: bool
) -> None:
    """A contiguous dataset whose space is allocated now."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_obj_track_times(False)  # files of the same predictions have the same bytes
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_ALLOC if zeros else h5py.h5d.FILL_TIME_NEVER)
    space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(dtype)
    h5py.h5d.create(file.id, name.encode(), kind, space, plist)
