"""What a rank does together with the ranks of a communicator, for the watchdog.

`mpidl.collectives.safety.watchdog` reads these records, to tell which rank is missing. The
collectives of a watched communicator record themselves.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from mpidl.comm import mpi
from mpidl.comm.protected import is_protected

if TYPE_CHECKING:
    from mpi4py import MPI as MPITypes

# Methods of a watched communicator that record themselves; messages between two ranks are recorded
# by those who send them.
RECORDED = (
    *("Barrier", "Bcast", "Gather", "Gatherv", "Scatter", "Scatterv", "Allgather", "Allgatherv"),
    *("Alltoall", "Alltoallv", "Reduce", "Allreduce", "Reduce_scatter", "Scan", "Exscan"),
    *("barrier", "bcast", "gather", "scatter", "allgather", "alltoall", "reduce", "allreduce"),
    *("scan", "exscan", "Split", "Split_type", "Clone", "Dup", "Create", "Free"),
)
# Process-wide, as MPI's communicators: the watchdog looks at all of them.
_made: Counter[Any] = Counter()
_activities: weakref.WeakSet[Activity] = weakref.WeakSet()
_lock = threading.Lock()


class Call(NamedTuple):
    """One operation that ranks do together; ranks that do it alike have equal words and lengths.

    Attributes:
        what: The operation: "all_reduce".
        buffer: Its array, where it has one.
        op: What it computes, and with which root.
        name: What the buffer is, for people.
    """

    what: str
    buffer: Any = None
    op: str = ""
    name: str = ""

    def __str__(self) -> str:
        """In one line: "all_reduce (sum) of 10 x float32, gradients"."""
        text = self.what + (f" ({self.op})" if self.op else "")
        if self.buffer is not None:
            text += f" of {self.buffer.size} x {self.buffer.dtype}"
        return text + (f", {self.name}" if self.name else "")


class Activity:
    """The operations that this rank has begun with the ranks of one communicator.

    Args:
        comm: The communicator.
        name: For people, as "world".

    Attributes:
        rank: This process in the communicator.
        size: Number of its ranks.
        world: Their numbers in MPI.COMM_WORLD.
        key: Names the activity, alike on all its ranks, which make it together.
        count: Operations begun.
        in_progress: The fields of the `Call` in progress. A plain tuple will do, since making
            a Call takes a tenth of the shortest all-reduce.
    """

    def __init__(self, comm: MPITypes.Comm, name: str) -> None:
        MPI = mpi.load()
        self.name = name
        self.rank = int(comm.Get_rank())
        self.size = int(comm.Get_size())
        everyone = MPI.COMM_WORLD.Get_group()
        self.world: list[int] = list(
            MPI.Group.Translate_ranks(comm.Get_group(), list(range(self.size)), everyone)
        )
        same = (name, tuple(self.world))
        _made[same] += 1
        self.key: tuple[Any, ...] = (*same, _made[same])
        self.count = 0
        self.in_progress: tuple[str, Any, str, str] | None = None
        with _lock:
            _activities.add(self)

    @property
    def call(self) -> Call | None:
        """The operation in progress."""
        return Call(*self.in_progress) if self.in_progress is not None else None

    def during(self, what: str, buffer: Any = None, op: str = "", name: str = "") -> _Recording:
        """Context manager: record an operation while all ranks do it. Arguments as of `Call`."""
        return _Recording(self, Call(what, buffer, op, name))

    def recording(self, call: Call) -> _Recording:
        """As `during`, of a call that is there."""
        return _Recording(self, call)

    def forget(self) -> None:
        """Take this out of what is watched."""
        with _lock:
            _activities.discard(self)


class _Recording:
    """A class, since a generator would add a microsecond to every collective."""

    __slots__ = ("activity", "before", "call")

    def __init__(self, activity: Activity, call: Call) -> None:
        self.activity = activity
        self.call = call

    def __enter__(self) -> None:
        activity = self.activity
        self.before = activity.in_progress
        activity.count += 1
        activity.in_progress = self.call

    def __exit__(self, *error: object) -> None:
        self.activity.in_progress = self.before


def activities() -> list[Activity]:
    """The activities of this process."""
    with _lock:
        return list(_activities)


def watched(comm: Any, activity: Activity) -> Any:
    """The same communicator, whose collectives record themselves in `activity`.

    A call within another recorded operation is part of that one.
    """
    if is_protected(comm):
        comm.activity = activity
        return comm
    made = _watched_type()(comm)
    made.activity = activity
    return made


@cache
def _watched_type() -> Any:
    plain = mpi.load().Intracomm
    methods = {name: _recording(name, getattr(plain, name)) for name in RECORDED}
    return type("Watched", (plain,), {"activity": None, **methods})


def recorded(comm: Any, what: str) -> AbstractContextManager[None]:
    """Context manager: tells the watchdog of an operation on a watched communicator.

    Nothing on another one, or within a recorded operation.
    """
    activity: Activity | None = getattr(comm, "activity", None)
    if activity is None or activity.in_progress is not None:
        return nullcontext()
    return activity.during(what)


def _recording(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        activity = self.activity
        if activity is None or activity.in_progress is not None:
            return method(self, *args, **kwargs)
        with activity.during(name):
            return method(self, *args, **kwargs)

    return call
