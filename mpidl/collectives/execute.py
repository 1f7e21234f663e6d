"""Runs a schedule on real memory over MPI: explicit `Sendrecv` for each exchange, `Allreduce` for native rounds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.collectives.schedule import Exchange, Schedule
from mpidl.comm import mpi

TAG = 7001
_scratch: dict[str, NDArray[Any]] = {}


def _borrow(count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Reused memory for received parts; grows to the largest part ever asked for."""
    held = _scratch.get(dtype.char)
    if held is None or held.size < count:
        held = _scratch[dtype.char] = np.empty(count, dtype)
    return held


def execute(schedule: Schedule, buffer: NDArray[Any], comm: Any) -> None:
    """Run this rank's `schedule` in place; the reduction is the sum.

    buffer: (n,) array in host memory, C-contiguous, of a dtype that MPI can send.
    """
    MPI = mpi.load()
    for step in schedule:
        if isinstance(step, Exchange):
            _exchange(MPI, step, buffer, comm)
        else:
            comm.Allreduce(MPI.IN_PLACE, buffer[step.start : step.stop], op=MPI.SUM)


def _exchange(MPI: Any, step: Exchange, buffer: NDArray[Any], comm: Any) -> None:
    outgoing = buffer[step.send[0] : step.send[1]]
    target = buffer[step.receive[0] : step.receive[1]]
    to = step.to if outgoing.size else MPI.PROC_NULL
    source = step.source if target.size else MPI.PROC_NULL
    incoming = _borrow(target.size, buffer.dtype)[: target.size] if step.combine else target
    comm.Sendrecv(outgoing, to, TAG, incoming, source, TAG)
    if step.combine and target.size:
        np.add(target, incoming, out=target)
