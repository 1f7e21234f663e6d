"""Reads ranges of samples from a data set, across the boundaries of its files."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.comm.context import Context
from mpidl.data.hdf5 import is_parallel
from mpidl.data.manifest import Arrays, Field, Manifest, load_manifest
from mpidl.data.native import Indices
from mpidl.data.shard_file import ShardFile, Stamp, check_layout, verify_shard
from mpidl.errors import DataError

DRIVERS = ("auto", "posix", "mpio", "mpio-collective")
MOST_OPEN = 256  # files; each takes two descriptors, and 1024 are a usual limit


class Reader:
    """A data set in shards or in place, open for reading. Collective with a context.

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
        self._files: dict[int, ShardFile] = {}  # the one that was used last stands last
        self._stamps: dict[int, Stamp] = {}
        if context is None:
            self._open(driver, verify, fields)
            return
        with context.fail_together(f"opening the data set {folder}"):
            self._open(driver, verify, fields)
        if self.driver != "posix":
            self._files[0] = ShardFile(
                self.path(0), self.manifest.shards[0], self.fields, comm=context.comm
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
                verify_shard(self.path(index), shard, checksum=verify)
                check_layout(self.path(index), shard, self.fields)

    def _choose(self, driver: str) -> str:
        if driver not in DRIVERS:
            raise DataError(
                f"unknown data.driver {driver!r}", remedy=f"choose one of {', '.join(DRIVERS)}"
            )
        shared = self.manifest.layout == "shared" and len(self.manifest.shards) == 1
        several = self.context is not None and self.context.size > 1
        if driver == "auto":
            comm = self.context.comm if self.context is not None else None
            return "mpio" if shared and several and is_parallel(comm) else "posix"
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

    def path(self, index: int) -> Path:
        """Where a file of the data set lies."""
        return self.folder / self.manifest.shards[index].file

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

    @property
    def files_read(self) -> list[str]:
        """The files that this rank has opened so far, in the order of their first use."""
        held = {**self._stamps, **self._files}  # a file that all ranks share has no stamp
        return [self.manifest.shards[index].file for index in held]

    def locate(self, sample: int) -> tuple[str, int]:
        """The file of a sample and its row there, for messages."""
        index = min(bisect_right(self.starts, sample) - 1, len(self.manifest.shards) - 1)
        row = sample - self.starts[index] + self.manifest.shards[index].first
        return str(self.path(index)), row

    def read(
        self,
        pieces: Sequence[tuple[int, int]],
        memory: Arrays | None = None,
        place: Indices | None = None,
        *,
        threads: int = 1,
    ) -> Arrays:
        """Read ranges of samples. Collective with the driver "mpio-collective".

        Args:
            pieces: (start, stop) ranges, ascending.
            memory: What an earlier read returned and is no longer in use; reused where it is large
                enough.
            place: (n,), which row of the result each sample becomes, a permutation; None: one after
                another.
            threads: That read at once, where HDF5 is not needed.

        Returns:
            The samples, (n, *shape) for each field.

        Raises:
            DataError: A read fails, or a file has changed; the message names the file.
        """
        arrays = self.allocate(sum(stop - start for start, stop in pieces), memory)
        self.read_into(pieces, arrays, place, threads=threads)
        return arrays

    def allocate(self, samples: int, memory: Arrays | None = None) -> Arrays:
        """Arrays for `samples` samples, in memory of an earlier read where that is large enough."""
        return {
            name: _allocate(memory, name, (samples, *field.shape), field.dtype)
            for name, field in self.fields.items()
        }

    def read_into(
        self,
        pieces: Sequence[tuple[int, int]],
        arrays: Arrays,
        place: Indices | None = None,
        *,
        threads: int = 1,
    ) -> None:
        """As `read`, into arrays of exactly as many samples; with places, of more."""
        row = 0
        for index, ranges in self._by_shard(pieces).items():
            count = sum(stop - start for start, stop in ranges)
            file, collective = self._open_shard(index), self.driver == "mpio-collective"
            for name, array in arrays.items():
                here = slice(row, row + count)
                out, own = (array[here], None) if place is None else (array, place[here])
                file.read(name, ranges, out, own, collective=collective, threads=threads)
            file.check_unchanged()
            row += count

    def _by_shard(self, pieces: Sequence[tuple[int, int]]) -> dict[int, list[tuple[int, int]]]:
        """The pieces as row ranges within each shard."""
        ranges: dict[int, list[tuple[int, int]]] = {0: []} if self._is_collective else {}
        for start, stop in pieces:
            while start < stop:
                index = bisect_right(self.starts, start) - 1
                end = min(stop, self.starts[index + 1])
                ranges.setdefault(index, []).append(
                    (start - self.starts[index], end - self.starts[index])
                )
                start = end
        return ranges

    def _open_shard(self, index: int) -> ShardFile:
        """An open file; beyond `MOST_OPEN`, the one that was not used for longest is closed."""
        file = self._files.pop(index, None)
        if file is None:
            stamp, shard = self._stamps.get(index), self.manifest.shards[index]
            file = ShardFile(self.path(index), shard, self.fields, stamp=stamp)
            self._stamps[index] = file.stamp
        self._files[index] = file
        if len(self._files) > MOST_OPEN:
            self._files.pop(next(iter(self._files))).close()
        return file

    @property
    def _is_collective(self) -> bool:
        return self.driver == "mpio-collective"

    def check_unchanged(self) -> None:
        """Refuse files that have changed since this rank has opened them.

        Raises:
            DataError: One has; the message names it.
        """
        for file in list(self._files.values()):
            file.check_unchanged()

    def close(self) -> None:
        """Close all files; collective if the reader uses mpio."""
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
