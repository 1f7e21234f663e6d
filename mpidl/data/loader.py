"""Batches for training: a thread prefetches windows, batches are gathered from them in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.comm.context import Context
from mpidl.data.direct import Indices
from mpidl.data.manifest import Arrays
from mpidl.data.reader import Reader
from mpidl.data.sampler import LaneSampler, Window
from mpidl.data.validate import check_values


@dataclass(frozen=True)
class Batch:
    """This rank's part of a global batch.

    Attributes:
        arrays: Field -> (n, *shape), n may be 0; valid until the next batch, not to be written to.
        epoch: Number of the epoch, from 0.
        step: Number of the step in the epoch, from 0.
        count: n, samples on this rank.
        global_count: Samples on all ranks.
    """

    arrays: Arrays
    epoch: int
    step: int
    count: int
    global_count: int


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


class Loader:
    """Iterates over epochs of a data set in the order of a sampler.

    Where this rank's part fits into one window it is read once and kept for all epochs. Otherwise a
    thread reads the next window while the current one is used; the same thread does where reading
    needs MPI and the MPI library does not allow threads, or reads collectively. Samples are read
    straight into the order of the batches, which are slices of the window; only later epochs over
    kept data gather copies.

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
        self._kept: _Held | None = None
        self._keep = keep and sampler.window is None
        self._buffers: Arrays = {}
        self._spare: Arrays | None = None  # the memory of a window that is no longer used
        self._threads = context.threads if context is not None else len(os.sched_getaffinity(0))
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
            DataError: A file cannot be read, or holds values that cannot be trained on.
        """
        windows = self.sampler.windows(epoch, first_step)
        arrays: Arrays | None = None
        pending, waited = self._fetch(windows, self._spare, self._threads), True
        while (held := pending.result()) is not None:
            used, arrays, window = arrays, held.arrays, held.window
            # while this rank waits for data, nothing else needs its cores
            pending = self._fetch(windows, used, self._threads if waited else 1)
            first = 0
            for step, rows in enumerate(window.rows, window.first_step):
                batch = self._batch(held, rows, first)
                yield Batch(batch, epoch, step, len(rows), self.sampler.count(step))
                first += len(rows)
            waited = not pending.done()
        self._spare = arrays

    def _fetch(
        self, windows: Iterator[Window], memory: Arrays | None, threads: int
    ) -> Future[_Held | None]:
        """The next window with its data, None after the last; the thread computes and reads it."""
        if self._pool is not None:
            return self._pool.submit(self._load, windows, memory, threads)
        done: Future[_Held | None] = Future()
        done.set_result(self._load(windows, memory, threads))
        return done

    def _load(self, windows: Iterator[Window], memory: Arrays | None, threads: int) -> _Held | None:
        window = next(windows, None)
        if window is None:
            return None
        if self._kept is not None and self._kept.window.pieces == window.pieces:
            return replace(self._kept, window=window, in_order=False)
        place = _batch_order(window)
        arrays = self.reader.read(
            window.pieces, None if self._keep else memory, place=place, threads=threads
        )
        check_values(self.reader, arrays, window.pieces, place)
        for array in arrays.values():
            array.flags.writeable = False
        held = _Held(window, arrays, place, in_order=place is not None)
        if self._keep:
            self._kept = held
        return held

    def _batch(self, held: _Held, rows: Indices, first: int) -> Arrays:
        """The batch of `rows`, before which the window has `first` others."""
        if held.in_order:
            return {name: array[first : first + len(rows)] for name, array in held.arrays.items()}
        return self._gather(held.arrays, rows if held.place is None else held.place[rows])

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
