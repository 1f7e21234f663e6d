"""Reads ranges of samples from a sharded data set, across the boundaries of its shards."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.comm.context import Context
from mpidl.data.direct import DirectRows, Indices
from mpidl.data.hdf5 import (
    is_parallel,
    open_file,
    read_ranges,
    read_ranges_collectively,
    trusted_dataset,
)
from mpidl.data.manifest import Arrays, Field, Manifest, Shard, load_manifest, verify_shard
from mpidl.errors import DataError
from mpidl.files import reading

DRIVERS = ("auto", "posix", "mpio", "mpio-collective")


class Reader:
    """A sharded data set, open for reading. Collective with a context.

    Args:
        folder: Where the manifest is.
        context: The ranks that read it together; None: this process alone.
        driver: "posix" (each rank opens the files it needs), "mpio" (all ranks open the shared file
            together, reads are independent), "mpio-collective" (every rank must call `read` equally
            often), or "auto": mpio for a shared file where h5py is parallel, else posix.
        verify: Whether to check the SHA-256 of every shard first; ranks divide the shards.
        fields: The fields to read; None: all.

    Raises:
        DataError: The data set or the driver cannot be used; on every rank.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        context: Context | None = None,
        driver: str = "auto",
        verify: bool = True,
        fields: Sequence[str] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.context = context
        self._files: dict[int, Any] = {}
        self._handles: dict[int, int] = {}
        self._direct: dict[tuple[int, str], DirectRows | None] = {}
        if context is None:
            self._open(driver, verify, fields)
            return
        with context.fail_together(f"opening the data set {folder}"):
            self._open(driver, verify, fields)
        if self.driver != "posix":
            self._files[0] = open_file(
                self.folder / self.manifest.shards[0].file, comm=context.comm
            )

    def _open(self, driver: str, verify: bool, fields: Sequence[str] | None) -> None:
        self.manifest: Manifest = load_manifest(self.folder)
        names = list(self.manifest.fields) if fields is None else list(fields)
        self.fields: dict[str, Field] = {name: self.manifest.fields[name] for name in names}
        self.starts = [0, *accumulate(shard.samples for shard in self.manifest.shards)]
        self.driver = self._choose(driver)
        rank, size = (self.context.rank, self.context.size) if self.context else (0, 1)
        for index, shard in enumerate(self.manifest.shards):
            if index % size == rank:
                self._check(shard, verify)

    def _choose(self, driver: str) -> str:
        if driver not in DRIVERS:
            raise DataError(
                f"unknown data.driver {driver!r}", remedy=f"choose one of {', '.join(DRIVERS)}"
            )
        shared = self.manifest.layout == "shared" and len(self.manifest.shards) == 1
        several = self.context is not None and self.context.size > 1
        if driver == "auto":
            return "mpio" if shared and several and is_parallel() else "posix"
        if driver.startswith("mpio"):
            if not is_parallel():
                raise DataError(
                    "this h5py is serial: it has no mpio driver",
                    where=f"data.driver = {driver!r}",
                    remedy="use driver 'posix' (works for shards and for reading a shared file), "
                    "or see 'mpidl doctor'",
                )
            if not shared or self.context is None:
                raise DataError(
                    "mpio reads one shared file on all ranks, and this is not one",
                    where=str(self.folder),
                    remedy="use data.driver = 'posix', or shard with --shared",
                )
        return driver

    def _check(self, shard: Shard, verify: bool) -> None:
        path = self.folder / shard.file
        if verify:
            verify_shard(self.folder, shard)
        elif not path.is_file():
            raise DataError(
                "the shard is missing",
                where=str(path),
                remedy="copy it again or shard the data again",
            )
        with reading(path), open_file(path) as file:
            for name, field in self.fields.items():
                dataset = trusted_dataset(file, name, path)
                wanted = (shard.samples, *field.shape)
                if dataset.shape != wanted or dataset.dtype != np.dtype(field.dtype):
                    raise DataError(
                        f"field {name!r} is {dataset.dtype}{list(dataset.shape)}, "
                        f"the manifest says {field.dtype}{list(wanted)}",
                        where=str(path),
                        remedy="the manifest belongs to other files: shard the data again",
                    )

    def select(self, names: Sequence[str]) -> None:
        """Read these fields only from now on; those that the data set does not have are left out.

        Args:
            names: Of fields.
        """
        self.fields = {name: field for name, field in self.fields.items() if name in names}

    def __len__(self) -> int:
        """Samples in the data set."""
        return self.manifest.samples

    @property
    def uses_mpi(self) -> bool:
        """Whether reading calls MPI, so that a prefetch thread needs MPI_THREAD_MULTIPLE."""
        return self.driver != "posix"

    def locate(self, sample: int) -> tuple[str, int]:
        """The shard file of a sample and its row there, for messages."""
        index = min(bisect_right(self.starts, sample) - 1, len(self.manifest.shards) - 1)
        return str(self.folder / self.manifest.shards[index].file), sample - self.starts[index]

    def read(
        self,
        pieces: Sequence[tuple[int, int]],
        memory: Arrays | None = None,
        *,
        place: Indices | None = None,
        threads: int = 1,
    ) -> Arrays:
        """Read ranges of samples. Collective with the driver "mpio-collective".

        Args:
            pieces: (start, stop) ranges, ascending.
            memory: What an earlier read returned and is no longer in use; reused where it is large
                enough.
            place: (n,), where in the result each sample goes, a permutation of 0..n-1; None: one
                after another.
            threads: That read at once, where HDF5 is not needed to read.

        Returns:
            The samples, (n, *shape) for each field.

        Raises:
            DataError: A read fails; the message names the file.
        """
        arrays = self.allocate(pieces, memory)
        self.read_into(arrays, pieces, place=place, threads=threads)
        return arrays

    def allocate(self, pieces: Sequence[tuple[int, int]], memory: Arrays | None = None) -> Arrays:
        """Arrays for `read_into`; see `read`."""
        total = sum(stop - start for start, stop in pieces)
        return {
            name: _allocate(memory, name, (total, *field.shape), field.dtype)
            for name, field in self.fields.items()
        }

    def read_into(
        self,
        arrays: Arrays,
        pieces: Sequence[tuple[int, int]],
        row: int = 0,
        *,
        place: Indices | None = None,
        threads: int = 1,
    ) -> int:
        """As `read`, into given arrays.

        Args:
            arrays: Field -> (rows, *shape).
            pieces: (start, stop) ranges, ascending.
            row: Where the first of the samples goes, or where its entry in `place` is.
            place: (rows,), as in `read`.
            threads: That read at once.

        Returns:
            The row after the last.
        """
        for index, ranges in self._by_shard(pieces).items():
            count = sum(stop - start for start, stop in ranges)
            for name, array in arrays.items():
                if place is None:
                    self._read_ranges(index, name, ranges, array[row : row + count], None, threads)
                else:
                    here = place[row : row + count]
                    self._read_ranges(index, name, ranges, array, here, threads)
            row += count
        return row

    def _by_shard(self, pieces: Sequence[tuple[int, int]]) -> dict[int, list[tuple[int, int]]]:
        """The pieces as row ranges within each shard."""
        ranges: dict[int, list[tuple[int, int]]] = (
            {0: []} if self.driver == "mpio-collective" else {}
        )
        for start, stop in pieces:
            while start < stop:
                index = bisect_right(self.starts, start) - 1
                end = min(stop, self.starts[index + 1])
                ranges.setdefault(index, []).append(
                    (start - self.starts[index], end - self.starts[index])
                )
                start = end
        return ranges

    def _read_ranges(
        self,
        index: int,
        name: str,
        ranges: Sequence[tuple[int, int]],
        out: NDArray[Any],
        place: Indices | None,
        threads: int,
    ) -> None:
        path = self.folder / self.manifest.shards[index].file
        if index not in self._files:
            self._files[index] = open_file(path, chunk_cache=False)
        with reading(path):
            direct = self._direct_rows(index, name)
            if direct is not None:
                direct.read(ranges, out, place, threads)
                return
            read = read_ranges_collectively if self.driver == "mpio-collective" else read_ranges
            if place is None:
                read(self._files[index][name], ranges, out)
                return
            rows = np.empty((len(place), *out.shape[1:]), out.dtype)
            read(self._files[index][name], ranges, rows)
            out[place] = rows

    def _direct_rows(self, index: int, name: str) -> DirectRows | None:
        """Direct access to a field of a shard, with the posix driver where its layout allows it."""
        if self.driver != "posix":
            return None
        if (index, name) not in self._direct:
            path = self.folder / self.manifest.shards[index].file
            if index not in self._handles:
                self._handles[index] = os.open(path, os.O_RDONLY)
            wanted = np.dtype(self.fields[name].dtype)
            self._direct[index, name] = DirectRows.make(
                self._files[index][name], self._handles[index], wanted
            )
        return self._direct[index, name]

    def close(self) -> None:
        """Close all files; collective if the reader uses mpio."""
        self._direct.clear()
        while self._handles:
            os.close(self._handles.popitem()[1])
        while self._files:
            self._files.popitem()[1].close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or self.driver == "posix":
            self.close()


def _allocate(memory: Arrays | None, name: str, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """An array of `shape`, in the memory of an earlier one where that is large enough.

    The page faults of fresh memory cost as much as the read.
    """
    held = memory.get(name) if memory else None
    while held is not None and isinstance(held.base, np.ndarray):
        held = held.base
    if held is not None and len(held) >= shape[0]:
        held.flags.writeable = True
        return held[: shape[0]]
    return np.empty(shape, dtype)
