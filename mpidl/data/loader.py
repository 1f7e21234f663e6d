"""Batches for training: threads prefetch windows, batches are gathered from them in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.comm.context import Context
from mpidl.data.manifest import Arrays
from mpidl.data.mixture import Mixture
from mpidl.data.reader import Reader
from mpidl.data.sampler import WINDOWS_HELD, LaneSampler, Window, sample_numbers
from mpidl.data.validate import check_values
from mpidl.errors import DataError, notice

AHEAD = WINDOWS_HELD - 1  # windows that are read before they are needed
_Loaded = Future[tuple[Window, Arrays] | None]


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

    Where this rank's part fits into one window it is read once and kept for all epochs. Otherwise
    threads read the next `AHEAD` windows while the current one is used, into memory of windows
    before; the calling thread reads where reading needs MPI and the MPI library does not allow
    threads, or reads collectively.

    Args:
        reader: The open data set.
        sampler: The order.
        context: Of the ranks, where the reader uses MPI.
        keep: Whether data that fit into one window stay in memory.
    """

    def __init__(
        self,
        reader: Reader | Mixture,
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
        # The memory of windows that are no longer used
        self._spare: deque[Arrays] = deque(maxlen=1 if self._keep else AHEAD + 1)
        collective = reader.driver == "mpio-collective"
        threads = not collective and (
            not reader.uses_mpi or (context is not None and context.threads_allowed)
        )
        workers = 1 if reader.uses_mpi else AHEAD
        self._pool = (
            ThreadPoolExecutor(workers, thread_name_prefix="mpidl-prefetch") if threads else None
        )
        self._lock = Lock()

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
        waiting: deque[_Loaded] = deque()
        ahead = deque(self._fetch(windows, waiting) for _ in range(AHEAD if self._pool else 1))
        try:
            while (loaded := ahead.popleft().result()) is not None:
                window, arrays = loaded
                if self._pool:
                    ahead.append(self._fetch(windows, waiting))
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
                self._spare.append(arrays)
                if not self._pool:
                    ahead.append(self._fetch(windows, waiting))
        finally:
            self._give_back(ahead)

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

    def _fetch(self, windows: Iterator[Window], waiting: deque[_Loaded]) -> _Loaded:
        """The next window with its data, None after the last; a thread computes and reads it."""
        future: _Loaded = Future()
        waiting.append(future)
        if self._pool is not None:
            self._pool.submit(self._load, windows, waiting)
        else:
            self._load(windows, waiting)
        return future

    def _load(self, windows: Iterator[Window], waiting: deque[_Loaded]) -> None:
        """Load the next window for the future that has waited longest."""
        with self._lock:  # windows in order, whichever thread comes first
            future = waiting.popleft()
            try:
                window = next(windows, None)
            except BaseException as error:  # raised where the batches are taken
                future.set_exception(error)
                return
            memory = None if self._keep or not self._spare else self._spare.popleft()
        try:
            future.set_result((window, self._read(window, memory)) if window else None)
        except BaseException as error:
            future.set_exception(error)

    def _read(self, window: Window, memory: Arrays | None) -> Arrays:
        if self._kept is not None and self._kept[0] == window.pieces:
            return self._kept[1]
        arrays = self.reader.read(window.pieces, memory)
        check_values(self.reader, arrays, window.pieces)
        if self._keep:
            self._kept = (window.pieces, arrays)
        return arrays

    def _give_back(self, ahead: Iterable[_Loaded]) -> None:
        """Keep the memory of windows that were read for an epoch that was left early."""
        for future in ahead:
            if future.exception() is None and (loaded := future.result()) is not None:
                self._spare.append(loaded[1])

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
