"""Asynchronous operations of a group: a thread runs them in order and fuses small all-reduces.

Handing an operation to another thread costs more than reducing a small array. Queued all-reduces
are therefore fused into one message, as in Horovod (Sergeev and Del Balso, 2018). The ranks agree
on how many: each offers the all-reduces of one kind at the head of its queue, and the minimum over
the ranks is taken.
"""

from __future__ import annotations

import queue
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
from mpidl.errors import CollectiveError, MpidlError, notice, wrap

try:
    from mpidl._kernels.fast_shared import address as _fast_address
except ImportError:  # built without Python.h
    _fast_address = None

FUSED_ARRAY = 64 << 10  # bytes: larger arrays gain nothing from fusion
FUSED_MESSAGE = 1 << 20  # bytes
Operation = Callable[[Group], Any]


class Reduction:
    """An all-reduce.

    Attributes:
        array: What its handle returns.
        flat: The same memory, (n,).
        op: The operation.
        name: For messages.
        kind: All-reduces of equal kind may be fused; None for one that is run alone, which
            includes those whose arguments are wrong.
        address: Of the memory, if it may be fused.
        nbytes: Of the memory, if it may be fused.
    """

    __slots__ = ("address", "array", "flat", "kind", "name", "nbytes", "op")

    def __init__(self, array: Any, flat: NDArray[Any], op: str, name: str) -> None:
        self.array = array
        self.flat = flat
        self.op = op
        self.name = str(name or "")
        self.kind = (op, flat.dtype.num) if _is_fusable(flat, op) else None
        self.address = _address(flat) if self.kind else 0
        self.nbytes = flat.nbytes if self.kind else 0

    def __call__(self, group: Group) -> Any:
        """Run it alone."""
        all_reduce(self.flat, comm=group, op=self.op, name=self.name)
        return self.array


def _is_fusable(flat: Any, op: str) -> bool:
    """Whether an array that has passed `checks.array` may share a message."""
    if type(flat) is not np.ndarray or not 0 < flat.nbytes <= FUSED_ARRAY:
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
    """An operation in progress; its arrays must not be accessed until `wait` returns."""

    __slots__ = ("_channel", "_error", "_finished", "_kind", "_operation", "_result")

    def __init__(self, channel: Channel, operation: Operation) -> None:
        self._channel = channel
        self._operation = operation
        self._kind = operation.kind if type(operation) is Reduction else None
        self._finished = False
        self._result: Any = None
        self._error: BaseException | None = None

    def done(self) -> bool:
        """Whether the operation has completed or failed."""
        return self._finished

    def wait(self) -> Any:
        """Wait for completion; returns what the synchronous form returns, or raises its error."""
        if not self._finished:
            self._channel.wait(self)
        if self._error is not None:
            self._channel.failed.pop(self, None)
            raise self._error
        return self._result


class Channel:
    """Runs the asynchronous operations of a group in submission order.

    Args:
        group: For these operations only.
        thread: Whether in a thread; where MPI does not allow several, they run at submission.

    Attributes:
        failed: Handles whose error nobody has seen yet, in the order in which they failed.
    """

    def __init__(self, group: Group, *, thread: bool = True) -> None:
        self.group = group
        self.failed: dict[Handle, None] = {}
        self._queue: queue.SimpleQueue[Handle | None] = queue.SimpleQueue()
        self._finished = threading.Condition()
        self._fusion_buffer: NDArray[np.uint8] | None = None
        self._thread: threading.Thread | None = None
        if thread:
            self._thread = threading.Thread(
                target=self._work, name="mpidl-asynchronous", daemon=True
            )
            self._thread.start()
        mpi.before_finalize(self._at_exit)

    def submit(self, operation: Operation) -> Handle:
        """Enqueue an operation; it is called with the group of the channel."""
        handle = Handle(self, operation)
        if self._thread is not None:
            self._queue.put(handle)
        else:
            self._run_alone(handle)
        return handle

    def wait(self, handle: Handle) -> None:
        """Wait until the operation of `handle` has completed."""
        with self._finished:
            while not handle._finished:
                self._finished.wait()

    def raise_failed(self) -> None:
        """Raise the first error whose handle was never waited for."""
        for handle in list(self.failed):
            self.failed.pop(handle, None)
            raise _unseen(handle) from handle._error

    def close(self) -> None:
        """End the thread after the operations that are queued."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _at_exit(self) -> None:
        """An error that nobody has seen ends the job, as an uncaught exception does."""
        self.close()
        if not self.failed:
            return
        errors = [_unseen(handle) for handle in self.failed]
        own = [error for error in errors if not error.agreed or self.group.rank == 0]
        for error in own:
            notice(str(error), f"error on rank {self.group.rank}")
        if not own:
            time.sleep(1.0)  # rank 0 prints first, before the job is killed
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
            except Exception as error:  # the ranks disagree on what comes next
                count = 1
                self._finish(batch[:1], error)
            else:
                self._run(batch[:count])
            for _ in range(count):
                waiting.popleft()

    def _agree(self, count: int) -> int:
        smallest = np.array([count], np.int64)
        all_reduce(
            smallest, comm=self.group, op="min", name="number of queued asynchronous all-reduces"
        )
        return int(smallest[0])

    def _run(self, batch: list[Handle]) -> None:
        if len(batch) == 1:
            self._run_alone(batch[0])
            return
        reductions: list[Any] = [handle._operation for handle in batch]
        try:
            separate = not self._reduce_fused(reductions)
        except CollectiveError as error:
            if not error.agreed:
                self._finish(batch, error)
                return
            separate = True
        except BaseException as error:
            self._finish(batch, error)
            return
        if separate:  # on all ranks; one by one, so that each handle gets its own error
            for handle in batch:
                self._run_alone(handle)
            return
        for handle, reduction in zip(batch, reductions, strict=True):
            handle._result = reduction.array
        self._finish(batch)

    def _reduce_fused(self, reductions: list[Reduction]) -> bool:
        """Reduce several arrays in one message.

        Returns:
            False, with all arrays unchanged, where an infinity of one array could hide that
            another one overflowed.
        """
        flats = [reduction.flat for reduction in reductions]
        sizes, first = [flat.size for flat in flats], reductions[0]
        if self._fusion_buffer is None:
            self._fusion_buffer = np.empty(FUSED_MESSAGE, np.uint8)
        fused = self._fusion_buffer[: sum(sizes) * first.flat.itemsize].view(first.flat.dtype)
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
    """The all-reduces at the head of the queue that fit one message.

    They are of one kind, and do not overlap in memory.
    """
    batch: list[Handle] = []
    spans: list[tuple[int, int]] = []
    nbytes = 0
    kind = waiting[0]._kind if waiting[0] is not None else None
    for handle in waiting:
        if handle is None or handle._kind != kind:
            break
        reduction: Any = handle._operation
        nbytes += reduction.nbytes
        if nbytes > FUSED_MESSAGE:
            break
        spans.append((reduction.address, reduction.nbytes))
        batch.append(handle)
    spans.sort()
    overlap = any(one + length > other for (one, length), (other, _) in pairwise(spans))
    return batch[:1] if overlap else batch


def _fused_name(reductions: list[Reduction], sizes: list[int]) -> str:
    names = [reduction.name for reduction in reductions]
    ends = f" from {names[0]!r} to {names[-1]!r}" if any(names) else ""
    return f"{len(sizes)} arrays fused{ends} {checksum(sizes, names)}"


def checksum(sizes: list[int], names: list[str]) -> str:
    """Of fused arrays, for the name of their message: other arrays of the same total differ."""
    crc = zlib.crc32(np.array(sizes, np.int64).tobytes())
    return f"[{zlib.crc32(', '.join(names).encode(), crc):08x}]"


def _unseen(handle: Handle) -> MpidlError:
    """The error of a handle that nobody has waited for."""
    error = handle._error
    if not isinstance(error, Exception):
        error = RuntimeError(repr(error))
    found = wrap(error, "running an asynchronous operation")
    what = f"an asynchronous operation that nobody has waited for failed: {found.what}"
    return found.replace(what=what)
