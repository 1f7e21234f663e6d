"""Batches for training: a thread prefetches windows, batches are gathered from them in memory."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.comm.context import Context
from mpidl.data.manifest import Arrays
from mpidl.data.reader import Reader
from mpidl.data.sampler import LaneSampler, Window, sample_numbers
from mpidl.data.validate import check_values
from mpidl.errors import DataError, notice


@dataclass(frozen=True)
class Batch:
    """This rank's part of a global batch.

    Attributes:
        arrays: Field -> (n, *shape), n may be 0; valid until the next batch.
        epoch: Number of the epoch, from 0.
        step: Number of the step in the epoch, from 0.
        count: n, samples on this rank.
        global_count: Samples on all ranks.
        pieces: Ranges of samples of which the arrays are rows.
        rows: Which rows.
    """

    arrays: Arrays
    epoch: int
    step: int
    count: int
    global_count: int
    pieces: tuple[tuple[int, int], ...]
    rows: NDArray[np.int64]

    @property
    def samples(self) -> NDArray[np.int64]:
        """(n,) numbers of the samples in the data set."""
        return sample_numbers(self.pieces, self.rows)


class Loader:
    """Iterates over epochs of a data set in the order of a sampler.

    Where this rank's part fits into one window it is read once and kept for all epochs. Otherwise a
    thread reads the next window while the current one is used; the same thread does where reading
    needs MPI and the MPI library does not allow threads, or reads collectively.

    Args:
        reader: The open data set.
        sampler: The order.
        context: Of the ranks, where the reader uses MPI.
        keep: Whether data that fit into one window stay in memory.
    """

    def __init__(
        self,
        reader: Reader,
        sampler: LaneSampler,
        *,
        context: Context | None = None,
        keep: bool = True,
    ) -> None:
        self.reader = reader
        self.sampler = sampler
        self._kept: tuple[tuple[tuple[int, int], ...], Arrays] | None = None
        self._noted = False
        self._keep = keep and sampler.window is None
        self._buffers: Arrays = {}
        self._spare: Arrays | None = None  # the memory of a window that is no longer used
        collective = reader.driver == "mpio-collective"
        threads = not collective and (
            not reader.uses_mpi or (context is not None and context.threads_allowed)
        )
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="mpidl-prefetch") if threads else None

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return self.sampler.steps

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch.

        Args:
            epoch: Its number.
            first_step: Where a resumed job continues.

        Raises:
            DataError: A file cannot be read, has changed, or holds values that cannot be trained
                on.
        """
        self._check_files()
        windows = self.sampler.windows(epoch, first_step)
        arrays: Arrays | None = None
        pending = self._fetch(windows, self._spare)
        while (loaded := pending.result()) is not None:
            used, (window, arrays) = arrays, loaded
            pending = self._fetch(windows, used)
            for step, rows in enumerate(window.rows, window.first_step):
                yield Batch(
                    self._gather(arrays, rows),
                    epoch,
                    step,
                    len(rows),
                    self.sampler.count(step),
                    window.pieces,
                    rows,
                )
        self._spare = arrays

    def _check_files(self) -> None:
        """Refuse files that have changed; note it where all of their data are in memory."""
        try:
            self.reader.check_unchanged()
        except DataError as error:
            if self._kept is None:
                raise
            if not self._noted:
                notice(f"{error.where}: {error.what}; this run goes on with what it has read")
            self._noted = True

    def _fetch(
        self, windows: Iterator[Window], memory: Arrays | None
    ) -> Future[tuple[Window, Arrays] | None]:
        """The next window with its data, None after the last; the thread computes and reads it."""
        if self._pool is not None:
            return self._pool.submit(self._load, windows, memory)
        done: Future[tuple[Window, Arrays] | None] = Future()
        done.set_result(self._load(windows, memory))
        return done

    def _load(
        self, windows: Iterator[Window], memory: Arrays | None
    ) -> tuple[Window, Arrays] | None:
        window = next(windows, None)
        if window is None:
            return None
        if self._kept is not None and self._kept[0] == window.pieces:
            return window, self._kept[1]
        arrays = self.reader.read(window.pieces, None if self._keep else memory)
        check_values(self.reader, arrays, window.pieces)
        if self._keep:
            self._kept = (window.pieces, arrays)
        return window, arrays

    def _gather(self, arrays: Arrays, rows: NDArray[np.int64]) -> Arrays:
        batch = {name: self._buffer(name, array, len(rows)) for name, array in arrays.items()}
        for name, array in arrays.items():
            # mode="clip" writes straight into out; the default goes through a buffer
            np.take(array, rows, axis=0, out=batch[name], mode="clip")
        return batch

    def _buffer(self, name: str, array: NDArray[Any], count: int) -> NDArray[Any]:
        held = self._buffers.get(name)
        if held is None or len(held) < count:
            held = self._buffers[name] = np.empty((count, *array.shape[1:]), array.dtype)
        return held[:count]

    def close(self) -> None:
        """Stop the prefetch thread."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
