"""One HDF5 file that all ranks fill, each its own chunks of samples; an interrupted run goes on.

Rank 0 makes the file with all of its space: datasets are contiguous and lie where HDF5 says. Ranks
then write rows at these offsets, with no HDF5 and no MPI between them, so that a killed rank leaves
a file that can be opened. The dataset `done` has a byte for each chunk, which becomes 1 once the
chunk is on disk. The file has its final name when all of them are.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.comm.context import Context
from mpidl.data import hdf5
from mpidl.data.hdf5 import h5py
from mpidl.errors import DataError, UnreadableError
from mpidl.files import partial_path, reading, reserve, write_atomically, writing
from mpidl.inference.output import publish_result

Columns = Mapping[str, NDArray[Any]]
DONE, SUMS, ABOUT, CLASS_NAMES = "done", "sums", "prediction", "class_names"
SYNC_SECONDS = 5.0  # a chunk counts as done after it was forced to disk: not more often


@dataclass(frozen=True)
class Notes:
    """What the file says to its readers.

    Attributes:
        attributes: Of the file.
        class_names: Of classes that are words, the dataset of that name.
        units: Of columns, their attribute "units".
    """

    attributes: Mapping[str, str]
    class_names: Sequence[str] = ()
    units: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """What the file holds.

    Attributes:
        samples: N.
        chunk: Samples that are written together.
        columns: Shape and dtype of each array, without the samples.
        sums: Numbers that each chunk adds to the metrics.
        about: What the predictions are of, compared before a run goes on.
        notes: For readers.
    """

    samples: int
    chunk: int
    columns: Mapping[str, tuple[tuple[int, ...], str]]
    sums: int
    about: Mapping[str, Any]
    notes: Notes

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

    def rows(self, chunk: int) -> tuple[int, int]:
        """The samples of a chunk."""
        return chunk * self.chunk, min((chunk + 1) * self.chunk, self.samples)

    def count(self, chunks: NDArray[np.int64]) -> int:
        """Samples of some chunks together, given in ascending order."""
        full = len(chunks) * self.chunk
        ends = len(chunks) and chunks[-1] == self.chunks - 1  # the last may have fewer
        return full - (self.chunks * self.chunk - self.samples if ends else 0)


class OtherPrediction(DataError):
    """What an interrupted run has left is another prediction."""


class Store:
    """The file of a prediction. Collective.

    Args:
        final: Its name when it is complete.
        layout: What it holds.
        context: The ranks.
        restart: Leave what an interrupted run has written, and begin anew.

    Attributes:
        path: Where it is written.
        pending: Chunks that are still to be computed, ascending.
        done: Samples that an interrupted run has done.

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
            if context.is_root:
                _lock(self._handle, self.path)
        # all ranks see the same ones: rank 0 says which
        pending = np.flatnonzero(self._read_done(self._handle) != 1)
        self.pending: NDArray[np.int64] = context.bcast_object(pending)
        self.done = layout.samples - layout.count(self.pending)
        self._unsynced: list[int] = []
        self._synced = time.monotonic()

    def _read_done(self, handle: int) -> NDArray[np.uint8]:
        """For each chunk 1, where it is done."""
        return np.frombuffer(os.pread(handle, self.layout.chunks, self._offsets[DONE]), np.uint8)

    def _prepare(self, restart: bool) -> dict[str, int]:
        """Make the file, or take up that of an interrupted run; the offsets of its datasets."""
        if self.path.exists():
            with open(self.path, "rb+") as file:
                _lock(file.fileno(), self.path)
        if self.path.exists() and not restart:
            self._check_same()
        else:
            with writing(self.path):
                self._make()
        with writing(self.path), hdf5.open_file(self.path) as file:
            return {name: self._offset(file, name) for name in self._shapes()}

    def _offset(self, file: Any, name: str) -> int:
        """Where the rows of a dataset begin, if it is what this run has made."""
        shape, dtype = self._shapes()[name]
        dataset = hdf5.trusted_dataset(file, name, self.path)
        offset = dataset.id.get_offset()
        if offset is None or dataset.shape != shape or dataset.dtype != np.dtype(dtype):
            raise OtherPrediction(
                f"the dataset {name!r} of an interrupted prediction is another one",
                where=str(self.path),
                remedy="begin anew with --restart",
            )
        return int(offset)

    def _shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of all that ranks write."""
        layout = self.layout
        shapes = {
            name: ((layout.samples, *shape), d) for name, (shape, d) in layout.columns.items()
        }
        shapes[DONE] = (layout.chunks,), "u1"
        if layout.sums:
            shapes[SUMS] = (layout.chunks, layout.sums), "f8"
        return shapes

    def _make(self) -> None:
        # the first chunk that is marked forces all of it to disk: until then nothing is lost
        with write_atomically(self.path, durable=False) as temporary:
            with hdf5.open_file(temporary, "w") as file:
                for name, (shape, stored) in self._shapes().items():
                    dtype = np.dtype(stored)
                    if dtype.kind == "S":  # keys, in UTF-8
                        dtype = h5py.string_dtype("utf-8", dtype.itemsize)
                    _allocate(file, name, shape, dtype, zeros=name in (DONE, SUMS))
                self._note(file)
            reserve(temporary, temporary.stat().st_size)

    def _note(self, file: Any) -> None:
        """Write what is known besides the predictions."""
        notes = self.layout.notes
        for key, value in notes.attributes.items():
            file.attrs[key] = value
        for name, value in notes.units.items():
            file[name].attrs["units"] = value
        if notes.class_names:  # no attribute: those must be small
            names = np.array([name.encode() for name in notes.class_names])
            _allocate(file, CLASS_NAMES, names.shape, names.dtype, zeros=True)
            file[CLASS_NAMES][...] = names
        file.attrs[ABOUT] = self._about()

    def _about(self) -> str:
        """What must be the same before an interrupted run goes on."""
        layout = self.layout
        columns = {name: [list(shape), dtype] for name, (shape, dtype) in layout.columns.items()}
        cut = {"chunk": layout.chunk, "columns": columns}
        return json.dumps(dict(layout.about) | cut, sort_keys=True)

    def _read_about(self) -> dict[str, Any]:
        """What an interrupted run has written of itself."""
        try:
            with hdf5.open_file(self.path) as file:
                found = file.attrs.get(ABOUT)
            known = json.loads(found) if isinstance(found, str) else None
        except UnreadableError:
            raise
        except (DataError, OSError, ValueError, RecursionError):
            known = None
        if not isinstance(known, dict):
            raise OtherPrediction(
                "is not an interrupted prediction, or it is damaged",
                where=str(self.path),
                remedy="remove the file, or begin anew with --restart",
            )
        return known

    def _check_same(self) -> None:
        known = self._read_about()
        wanted = json.loads(self._about())
        other = [key for key in wanted if known.get(key) != wanted[key]]
        if other:
            raise OtherPrediction(
                f"an interrupted prediction is there, with another {', '.join(other)}",
                where=str(self.path),
                remedy="give the same command as before, or begin anew with --restart",
            )

    def write(
        self, chunks: NDArray[np.int64], columns: Columns, sums: NDArray[np.float64] | None
    ) -> None:
        """Write the predictions of chunks.

        Args:
            chunks: Their numbers, which follow each other.
            columns: Arrays (samples of the chunks, ...).
            sums: What each adds to the metrics, (chunks, sums).
        """
        low, high = self.layout.rows(int(chunks[0]))[0], self.layout.rows(int(chunks[-1]))[1]
        with writing(self.path):
            for name, (shape, dtype) in self.layout.columns.items():
                array = np.ascontiguousarray(columns[name], dtype).reshape(high - low, *shape)
                row = array.nbytes // max(high - low, 1)
                self._write(array, self._offsets[name] + low * row)
            if sums is not None:
                self._write(sums, self._offsets[SUMS] + int(chunks[0]) * sums[0].nbytes)
            self._unsynced.extend(map(int, chunks))
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
            try:
                if self._unsynced:
                    self._mark()
            finally:
                os.close(self._handle)

    def sums(self) -> NDArray[np.float64]:
        """The sums of all chunks together, in their order; on every rank. Collective."""

        def read() -> NDArray[np.float64]:
            with hdf5.open_file(self.path) as file:
                held, total = file[SUMS], np.zeros(self.layout.sums)
                for row in range(len(held)):  # as many as memory has room for: one
                    total += held[row]
                return total

        found: NDArray[np.float64] = self._context.on_root(read, f"reading {self.path}")
        return found

    def finish(self, *, overwrite: bool) -> None:
        """Give the file its final name. For rank 0, once all ranks have closed it.

        Args:
            overwrite: Replace a file of that name.

        Raises:
            DataError: Chunks are missing; or there is such a file by now, which is left as it is.
        """
        with reading(self.path), open(self.path, "rb") as file:
            missing = np.flatnonzero(self._read_done(file.fileno()) != 1)
        if len(missing):
            raise DataError(
                f"{len(missing)} chunk(s) are not done, the first is {missing[0]}",
                where=str(self.path),
                remedy="give the same command again",
            )
        with writing(self.final):
            publish_result(self.path, self.final, self.path, overwrite=overwrite)


def _lock(handle: int, path: Path) -> None:
    """Keep other jobs out, where the file system has locks; until the handle is closed.

    Raises:
        DataError: Another job writes the file.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(
            "another prediction writes this file now",
            where=str(path),
            remedy="wait for its end, or choose another --out",
        ) from error
    except OSError:
        pass


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
