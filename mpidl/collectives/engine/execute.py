"""Runs a schedule on real memory over MPI.

A `Sendrecv` for each small exchange; large ones are started and completed apart, two in flight.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mpidl.collectives.engine.plans import Plan
from mpidl.collectives.engine.reduction import MEAN, OPERATIONS, Reducer, is_half
from mpidl.collectives.group import Group
from mpidl.collectives.safety.checks import FIRST_TAG, TAGS
from mpidl.collectives.schedule import Exchange, Native, Range, Round, Shared, pair_ranges, segments
from mpidl.comm import mpi, transport

EAGER = 20  # tests of a large message before the first sleep
NAP = 5e-5  # seconds of a sleep
LARGE = 1 << 16  # bytes; from here on exchanges are started and completed separately
_NATIVE = {"sum": "SUM", "product": "PROD", "min": "MIN", "max": "MAX"}


def message_tag(length: int, code: int, mark: int) -> int:
    """A message tag that nearly always differs between calls that differ.

    Their messages can then never be mixed up.

    Args:
        length: Elements of the buffer.
        code: Of its dtype.
        mark: Of collective, operation, root and name (see `call_hash`).
    """
    return FIRST_TAG + (length * 131 + code * 7 + mark) % TAGS


def execute(
    schedule: Iterable[Round], buffer: Any, group: Group, *, op: str = "sum", tag: int = FIRST_TAG
) -> None:
    """Run this rank's rounds in place.

    Args:
        schedule: The rounds.
        buffer: (n,) array, C-contiguous, in host memory, or in device memory if MPI can read that.
        group: The ranks.
        op: One of `OPERATIONS`; "mean" of 16-bit floats in schedules that complete a sum before
            they send it, and of floats in shared memory.
        tag: Of all messages.
    """
    small = buffer.nbytes < LARGE and not is_half(buffer.dtype)
    if small and isinstance(schedule, Plan) and schedule.exchanges_only:
        _small(schedule, buffer, group, OPERATIONS[op], tag)
    else:
        _Execution(buffer, group, op, tag).run(schedule)


def _small(rounds: list[Any], buffer: Any, group: Group, function: Any, tag: int) -> None:
    """A few small exchanges, where Python takes the time: as `_Execution`, without its steps."""
    sendrecv = group.comm.Sendrecv
    nobody = group.nobody
    scratch = group.scratch(buffer, buffer.size, 0)
    for dest, (low, high), source, (start, stop), reduce in rounds:
        if high == low:
            dest = nobody
        if stop == start:
            source = nobody
        target = buffer[start:stop]
        if reduce:
            incoming = scratch[: stop - start]
            sendrecv(buffer[low:high], dest, tag, incoming, source, tag)
            function(target, incoming, out=target)
        else:
            sendrecv(buffer[low:high], dest, tag, target, source, tag)


class _Execution:
    """One schedule on one buffer; one exchange at most is in flight while the next is prepared."""

    def __init__(self, buffer: Any, group: Group, op: str, tag: int) -> None:
        self.buffer = buffer
        self.group = group
        self.op = op
        self.tag = tag
        self.reducer = Reducer(buffer, "sum", group.size) if op == MEAN else Reducer(buffer, op)
        # MPI has no 16-bit floats
        self.wire = buffer.view(np.uint16) if self.reducer.half else buffer
        self.comm = group.comm
        self.MPI = mpi.load()
        self.pending: tuple[Exchange, list[Any], Any] | None = None
        self.turn = 0

    def run(self, schedule: Iterable[Round]) -> None:
        itemsize = self.buffer.dtype.itemsize
        for step in schedule:
            if not isinstance(step, Exchange):
                self._whole(step)
                continue
            for piece in _pieces(step):
                if (piece.receive[1] - piece.receive[0]) * itemsize >= LARGE:
                    self._start(piece)
                else:
                    self._exchange(piece)
        self._complete()
        if self.reducer.half:
            self.reducer.round()

    def _incoming(self, step: Exchange) -> tuple[Any, Any]:
        """Where the message is received: (as MPI sees it, as the reducer sees it)."""
        start, stop = step.receive
        if not step.reduce:
            return self.wire[start:stop], None
        self.turn ^= 1
        scratch = self.group.scratch(self.buffer, stop - start, self.turn)
        return (scratch.view(np.uint16) if self.reducer.half else scratch), scratch

    def _exchange(self, step: Exchange) -> None:
        if self.pending is not None:
            self._complete()
        dest, send, source, receive, reduce = step
        if self.reducer.half:
            self.reducer.round(send)
        outgoing, nobody = self.wire[send[0] : send[1]], self.MPI.PROC_NULL
        target, values = self._incoming(step)
        self.comm.Sendrecv(
            outgoing,
            dest if send[1] > send[0] else nobody,
            self.tag,
            target,
            source if receive[1] > receive[0] else nobody,
            self.tag,
        )
        if reduce and receive[1] > receive[0]:
            self.reducer.reduce(receive, values)

    def _start(self, step: Exchange) -> None:
        """Post this exchange, then finish the one before it, unless it has to be finished first."""
        if self.pending is not None and _depends(step, self.pending[0]):
            self._complete()
        if self.reducer.half:
            self.reducer.round(step.send)
        target, values = self._incoming(step)
        requests = [self.comm.Irecv(target, step.source, self.tag)]
        if step.send[1] > step.send[0]:
            requests.append(
                self.comm.Isend(self.wire[step.send[0] : step.send[1]], step.dest, self.tag)
            )
        self._complete()
        self.pending = (step, requests, values)

    def _complete(self) -> None:
        if self.pending is None:
            return
        step, requests, values = self.pending
        self.pending = None
        if self.group.node_count > 1:
            _wait_sleeping(self.group.requests, requests)
        else:
            self.group.requests.Waitall(requests)
        if step.reduce:
            self.reducer.reduce(step.receive, values)

    def _whole(self, step: Native | Shared) -> None:
        self._complete()
        if isinstance(step, Shared):
            self.group.shared.run(self.buffer[step.start : step.stop], self.op, step.what)
            return
        for start, stop in segments((step.start, step.stop), transport.MOST):
            self.comm.Allreduce(
                self.MPI.IN_PLACE, self.buffer[start:stop], op=getattr(self.MPI, _NATIVE[self.op])
            )


def _pieces(step: Exchange) -> Sequence[Exchange]:
    """The exchange as messages that MPI can count."""
    most = transport.MOST
    if step.send[1] - step.send[0] <= most and step.receive[1] - step.receive[0] <= most:
        return (step,)
    both = pair_ranges(segments(step.send, most), segments(step.receive, most))
    return [step._replace(send=send, receive=receive) for send, receive in both]


def _wait_sleeping(kind: Any, requests: list[Any]) -> None:
    """Wait for a long transfer over a network without a busy core.

    MPI waits by polling, and would take the core from whoever computes meanwhile.
    """
    for _ in range(EAGER):
        if kind.Testall(requests):
            return
    while not kind.Testall(requests):
        time.sleep(NAP)


def _overlap(a: Range, b: Range) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def _depends(step: Exchange, before: Exchange) -> bool:
    return (
        _overlap(step.send, before.receive)
        or _overlap(step.receive, before.receive)
        or _overlap(step.receive, before.send)
    )
