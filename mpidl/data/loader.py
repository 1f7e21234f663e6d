"""Batches for training: windows are read ahead by a thread, batches are gathered from the window in memory."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.comm.context import Context
from mpidl.data.reader import Arrays, Reader
from mpidl.data.sampler import LaneSampler, Window
from mpidl.data.validate import check_values


@dataclass(frozen=True)
class Batch:
    """This rank's part of a global batch. arrays: field -> (n, *shape), n may be 0; valid until the next batch."""

    arrays: Arrays
    epoch: int
    step: int
    count: int
    global_count: int


class Loader:
    """Iterates over epochs of a data set in the order of a sampler.

    Where the whole of this rank's part fits into one window it is read once and kept for all epochs. Otherwise the next
    window is read by a thread while the current one is used (in the same thread where reading needs MPI and the MPI library
    does not allow threads, or reads collectively).
    """

    def __init__(
        self,
        reader: Reader,
        sampler: LaneSampler,
        *,
        context: Context | None = None,
        keep: bool = True,
    ) -> None:
        self.reader, self.sampler, self.context = reader, sampler, context
        self._kept: tuple[tuple[tuple[int, int], ...], Arrays] | None = None
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
        """The batches of `epoch`, from step `first_step` on (for a resumed job)."""
        windows = self.sampler.windows(epoch, first_step)
        arrays: Arrays | None = None
        pending = self._fetch(windows, self._spare)
        while (loaded := pending.result()) is not None:
            used, (window, arrays) = arrays, loaded
            pending = self._fetch(windows, used)
            for step, rows in enumerate(window.rows, window.first_step):
                yield Batch(
                    self._gather(arrays, rows), epoch, step, len(rows), self.sampler.count(step)
                )
        self._spare = arrays

    def _fetch(
        self, windows: Iterator[Window], memory: Arrays | None
    ) -> Future[tuple[Window, Arrays] | None]:
        """The next window with its data, or None after the last: worked out and read by the thread, where there is one."""
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
            np.take(
                array, rows, axis=0, out=batch[name], mode="clip"
            )  # "clip" writes straight into out
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
