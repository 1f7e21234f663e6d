"""The communication thread of a group: runs its asynchronous operations in order, and fuses small all-reduces into one message.

Handing an operation to another thread costs more than reducing a small array. What waits in the queue is therefore done
together, as in Horovod (Sergeev and Del Balso, 2018). The ranks agree on how much: each offers the all-reduces of one kind at
the head of its queue, and the smallest number of them is taken everywhere.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.collectives import Group, all_reduce
from mpidl.collectives.engine.reduction import FLOAT16, NUMBERS, OP_CODES
from mpidl.comm import mpi
from mpidl.errors import CollectiveError, MpidlError, wrap

try:
    from mpidl._kernels.fast_shared import address as _fast_address
except ImportError:  # built without Python.h
    _fast_address = None

EACH, TOGETHER = (
    64 << 10,
    1 << 20,
)  # bytes: of an array that is worth fusing, and of a fused message
Operation = Callable[[Group], Any]


class Reduction:
    """An all-reduce. kind: those of one kind may be fused; None if it goes alone, in which case its arguments may be wrong."""

    __slots__ = ("array", "flat", "kind", "name", "nbytes", "op", "where")

    def __init__(self, array: Any, flat: NDArray[Any], op: str, name: str) -> None:
        self.array, self.flat, self.op, self.name = array, flat, op, str(name or "")
        self.kind = (op, flat.dtype.num) if _fusable(flat, op) else None
        self.where, self.nbytes = (_address(flat), flat.nbytes) if self.kind else (0, 0)

    def __call__(self, group: Group) -> Any:
        """Alone."""
        all_reduce(self.flat, comm=group, op=self.op, name=self.name)
        return self.array


def _fusable(flat: Any, op: str) -> bool:
    """Of an array that has passed `checks.array`."""
    if type(flat) is not np.ndarray or not 0 < flat.nbytes <= EACH:
        return False
    return flat.dtype.num in NUMBERS and type(op) is str and op in OP_CODES


def _address(flat: NDArray[Any]) -> int:
    if _fast_address is not None:
        try:
            return int(_fast_address(flat))
        except (BufferError, ValueError):  # bfloat16
            pass
    return int(flat.ctypes.data)


class Handle:
    """An operation that may still be under way; its arrays must be left alone until `wait` returns."""

    __slots__ = ("_channel", "_error", "_finished", "_kind", "_operation", "_result")

    def __init__(self, channel: Channel, operation: Operation) -> None:
        self._channel, self._operation = channel, operation
        self._kind = operation.kind if type(operation) is Reduction else None
        self._finished = False
        self._result: Any = None
        self._error: BaseException | None = None

    def done(self) -> bool:
        """Whether the operation is over (also if it failed)."""
        return self._finished

    def wait(self) -> Any:
        """Wait for the end; returns what the synchronous form returns, or raises its error."""
        if not self._finished:
            self._channel.wait(self)
        if self._error is not None:
            self._channel.failed.pop(self, None)
            raise self._error
        return self._result


class Channel:
    """failed: handles whose error nobody has seen yet, in the order in which they failed. thread: False runs operations at
    once, where MPI does not allow several threads.
    """

    def __init__(self, group: Group, *, thread: bool = True) -> None:
        self.group = group
        self.failed: dict[Handle, None] = {}
        self._queue: queue.SimpleQueue[Handle | None] = queue.SimpleQueue()
        self._finished = threading.Condition()
        self._room: NDArray[np.uint8] | None = None
        self._thread: threading.Thread | None = None
        if thread:
            self._thread = threading.Thread(
                target=self._work, name="mpidl-asynchronous", daemon=True
            )
            self._thread.start()
        mpi.before_finalize(self._at_exit)

    def submit(self, operation: Operation) -> Handle:
        """Hand an operation over; it gets the group of the channel."""
        handle = Handle(self, operation)
        if self._thread is not None:
            self._queue.put(handle)
        else:
            self._run_alone(handle)
        return handle

    def wait(self, handle: Handle) -> None:
        """Until a handle's operation is over."""
        with self._finished:
            while not handle._finished:
                self._finished.wait()

    def raise_failed(self) -> None:
        """Raise the first error that nobody has waited for."""
        for handle in list(self.failed):
            self.failed.pop(handle, None)
            raise _unseen(handle) from handle._error

    def close(self) -> None:
        """End the thread once its operations are done."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _at_exit(self) -> None:
        """An error that nobody has seen ends the job, as one that nobody has caught does."""
        self.close()
        if not self.failed:
            return
        errors = [_unseen(handle) for handle in self.failed]
        own = [error for error in errors if not error.agreed or self.group.rank == 0]
        for error in own:
            print(f"mpidl: error on rank {self.group.rank}: {error}", file=sys.stderr, flush=True)
        if not own:
            time.sleep(1.0)  # rank 0 speaks for all
        mpi.load().COMM_WORLD.Abort(1)

    def _work(self) -> None:
        waiting: deque[Handle | None] = deque()
        while True:
            if not waiting:
                waiting.append(self._queue.get())
            waiting.extend(self._queue.get() for _ in range(self._queue.qsize()))
            head = waiting[0]
            if head is None:
                return
            if head._kind is None:
                self._run_alone(head)
                waiting.popleft()
                continue
            batch = _batch(waiting)
            try:
                count = self._agree(len(batch))
            except Exception as error:  # another rank does something else
                count = 1
                self._finish(batch[:1], error)
            else:
                self._run(batch[:count])
            for _ in range(count):
                waiting.popleft()

    def _agree(self, count: int) -> int:
        smallest = np.array([count], np.int64)
        all_reduce(
            smallest, comm=self.group, op="min", name="number of asynchronous all-reduces at hand"
        )
        return int(smallest[0])

    def _run(self, batch: list[Handle]) -> None:
        if len(batch) == 1:
            self._run_alone(batch[0])
            return
        reductions: list[Any] = [handle._operation for handle in batch]
        try:
            apart = not self._reduce_together(reductions)
        except CollectiveError as error:
            if not error.agreed:
                self._finish(batch, error)
                return
            apart = True
        except BaseException as error:
            self._finish(batch, error)
            return
        if apart:  # all ranks know of it: one by one, so that each gets the error that is its own
            for handle in batch:
                self._run_alone(handle)
            return
        for handle, reduction in zip(batch, reductions, strict=True):
            handle._result = reduction.array
        self._finish(batch)

    def _reduce_together(self, reductions: list[Reduction]) -> bool:
        """False, with all arrays as they were, where an infinity of one array could hide that another one overflowed."""
        flats = [reduction.flat for reduction in reductions]
        sizes, first = [flat.size for flat in flats], reductions[0]
        if self._room is None:
            self._room = np.empty(TOGETHER, np.uint8)
        fused = self._room[: sum(sizes) * first.flat.itemsize].view(first.flat.dtype)
        np.concatenate(flats, out=fused)
        all_reduce(fused, comm=self.group, op=first.op, name=_fused_name(reductions, sizes))
        if fused.dtype.num == FLOAT16.num and not np.isfinite(fused).all():
            return False
        end = 0
        for flat, size in zip(flats, sizes, strict=True):
            start, end = end, end + size
            flat[:] = fused[start:end]
        return True

    def _run_alone(self, handle: Handle) -> None:
        try:
            handle._result = handle._operation(self.group)
        except BaseException as error:
            self._finish([handle], error)
        else:
            self._finish([handle])

    def _finish(self, batch: list[Handle], error: BaseException | None = None) -> None:
        for handle in batch:
            if error is not None:
                handle._error = error
                self.failed[handle] = None
            handle._finished = True
        with self._finished:
            self._finished.notify_all()


def _batch(waiting: deque[Handle | None]) -> list[Handle]:
    """The all-reduces at the head of the queue that one message can carry: of one kind, not too long, and apart in memory."""
    batch: list[Handle] = []
    spans, nbytes, kind = [], 0, waiting[0]._kind if waiting[0] is not None else None
    for handle in waiting:
        if handle is None or handle._kind != kind:
            break
        reduction: Any = handle._operation
        nbytes += reduction.nbytes
        if nbytes > TOGETHER:
            break
        spans.append((reduction.where, reduction.nbytes))
        batch.append(handle)
    spans.sort()
    overlap = any(one + length > other for (one, length), (other, _) in pairwise(spans))
    return batch[:1] if overlap else batch


def _fused_name(reductions: list[Reduction], sizes: list[int]) -> str:
    names = [reduction.name for reduction in reductions]
    ends = f" from {names[0]!r} to {names[-1]!r}" if any(names) else ""
    return f"{len(sizes)} arrays fused{ends} {checksum(sizes, names)}"


def checksum(sizes: list[int], names: list[str]) -> str:
    """Of arrays that travel together, for their name: other arrays of the same total differ in it."""
    return f"[{zlib.crc32(', '.join(names).encode(), zlib.crc32(np.array(sizes, np.int64).tobytes())):08x}]"


def _unseen(handle: Handle) -> MpidlError:
    """The error of a handle that nobody has waited for."""
    assert handle._error is not None
    error = (
        handle._error if isinstance(handle._error, Exception) else RuntimeError(repr(handle._error))
    )
    found = wrap(error, "running an asynchronous operation")
    return type(found)(
        f"an asynchronous operation that nobody has waited for failed: {found.what}",
        where=found.where,
        remedy=found.remedy,
        agreed=found.agreed,
    )
