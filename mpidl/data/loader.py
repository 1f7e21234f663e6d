"""Batches for training: threads read windows ahead, in the order of their batches."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.comm.context import Context
from mpidl.data.manifest import Arrays
from mpidl.data.mixture import Mixture
from mpidl.data.native import Indices
from mpidl.data.reader import Reader
from mpidl.data.sampler import WINDOWS_HELD, LaneSampler, Window, sample_numbers
from mpidl.data.validate import check_values
from mpidl.errors import DataError, notice

AHEAD = WINDOWS_HELD - 1  # windows that are read before they are needed


@dataclass(frozen=True)
class Batch:
    """This rank's part of a global batch.

    Attributes:
        arrays: Field -> (n, *shape), n may be 0; valid until the next batch, not to be written to.
        epoch: Number of the epoch, from 0.
        step: Number of the step in the epoch, from 0.
        count: n, samples on this rank.
        global_count: Samples on all ranks.
        pieces: Ranges of samples of which the arrays are rows.
        rows: Which rows.
        partner: The partners of these samples, where the sampler pairs them.
    """

    arrays: Arrays
    epoch: int
    step: int
    count: int
    global_count: int
    pieces: tuple[tuple[int, int], ...]
    rows: NDArray[np.int64]
    partner: Batch | None = None

    @property
    def samples(self) -> NDArray[np.int64]:
        """(n,) numbers of the samples in the data set."""
        return sample_numbers(self.pieces, self.rows)


@dataclass(frozen=True)
class _Held:
    """A window in memory.

    Attributes:
        window: Its steps.
        arrays: Its samples.
        place: Row of the concatenated pieces -> row of the arrays; None: the same.
        in_order: Whether the arrays are its batches one after another.
    """

    window: Window
    arrays: Arrays
    place: Indices | None
    in_order: bool


_Loaded = Future[_Held | None]


class Loader:
    """Iterates over epochs of a data set in the order of a sampler.

    Where this rank's part fits into one window it is read once and kept for all epochs. Otherwise
    threads read the next `AHEAD` windows while the current one is used, into memory of windows
    before; the calling thread reads where reading needs MPI and the MPI library does not allow
    threads, or reads collectively. Samples are read straight into the order of the batches, which
    are slices of the window; only later epochs over kept data, and windows in which samples are
    repeated, gather copies.

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
        self._kept: _Held | None = None
        # While this rank waits for data, nothing else needs its cores: they read
        self._threads = context.threads if context else len(os.sched_getaffinity(0))
        self._waits = True
        self._noted = False
        self._keep = keep and sampler.window is None
        self._buffers: Arrays = {}
        self._partners: Arrays = {}
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
        self._closed = False

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
        self._waits = True
        ahead = deque(self._fetch(windows, waiting) for _ in range(AHEAD if self._pool else 1))
        try:
            while (held := self._next(ahead)) is not None:
                window, first = held.window, 0
                if self._pool:
                    ahead.append(self._fetch(windows, waiting))
                for step, rows in enumerate(window.rows, window.first_step):
                    yield self._batch(held, epoch, step, first)
                    first += len(rows)
                self._spare.append(held.arrays)
                if not self._pool:
                    ahead.append(self._fetch(windows, waiting))
        finally:
            self._give_back(ahead)

    def _batch(self, held: _Held, epoch: int, step: int, first: int) -> Batch:
        """A batch, before which its window has `first` samples of other batches."""
        window, count = held.window, self.sampler.count(step)
        index = step - window.first_step
        partner = None
        if window.partners:
            rows = window.partners[index]
            arrays = self._gather(held, rows, self._partners)
            partner = Batch(arrays, epoch, step, len(rows), count, window.pieces, rows)
        rows = window.rows[index]
        if held.in_order:
            stop = first + len(rows)
            arrays = {name: array[first:stop] for name, array in held.arrays.items()}
        else:
            arrays = self._gather(held, rows, self._buffers)
        return Batch(arrays, epoch, step, len(rows), count, window.pieces, rows, partner)

    def _next(self, ahead: deque[_Loaded]) -> _Held | None:
        future = ahead.popleft()
        self._waits = not future.done()
        return future.result()

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
            future.set_result(self._read(window, memory) if window else None)
        except BaseException as error:
            future.set_exception(error)

    def _read(self, window: Window, memory: Arrays | None) -> _Held:
        if self._kept is not None and self._kept.window.pieces == window.pieces:
            return replace(self._kept, window=window, in_order=False)
        place = _batch_order(window)
        threads = self._threads if self._waits else 1
        arrays = self.reader.read(window.pieces, memory, place, threads=threads)
        check_values(self.reader, arrays, window.pieces, place)
        for array in arrays.values():
            array.flags.writeable = False
        held = _Held(window, arrays, place, in_order=place is not None)
        if self._keep:
            self._kept = held
        return held

    def _give_back(self, ahead: Iterable[_Loaded]) -> None:
        """Keep the memory of windows that were read for an epoch that was left early."""
        if self._closed:
            return  # what no thread had begun to read will never come
        for future in ahead:
            if future.exception() is None and (loaded := future.result()) is not None:
                self._spare.append(loaded.arrays)

    def _gather(self, held: _Held, rows: Indices, buffers: Arrays) -> Arrays:
        """The samples in some rows of the window, copied."""
        if held.place is not None:
            rows = held.place[rows]
        batch = {name: _buffer(buffers, name, a, len(rows)) for name, a in held.arrays.items()}
        for name, array in held.arrays.items():
            # mode="clip" writes straight into out; the default goes through a buffer
            np.take(array, rows, axis=0, out=batch[name], mode="clip")
        return batch

    def close(self) -> None:
        """Stop the prefetch thread."""
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _buffer(buffers: Arrays, name: str, array: NDArray[Any], count: int) -> NDArray[Any]:
    """Memory for `count` rows of `array`, kept in `buffers`."""
    held = buffers.get(name)
    if held is None or len(held) < count:
        held = buffers[name] = np.empty((count, *array.shape[1:]), array.dtype)
    return held[:count]


def _batch_order(window: Window) -> Indices | None:
    """Row of the concatenated pieces -> position in the order of the batches.

    Rows that are in no batch (of an epoch that was resumed) come last. None where a row is in
    several batches, so that there is no such order.
    """
    total = sum(stop - start for start, stop in window.pieces)
    wanted = np.concatenate([np.empty(0, np.int64), *window.rows])
    place = np.full(total, -1, np.int64)
    place[wanted] = np.arange(len(wanted))
    rest = np.flatnonzero(place < 0)
    if len(wanted) + len(rest) != total:
        return None
    place[rest] = np.arange(len(wanted), total)
    return place
