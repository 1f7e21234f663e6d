"""What a rank does together with the ranks of a communicator, so that a watchdog can tell who is missing.

`mpidl.collectives.safety.watchdog` reads these records. The collectives of a watched communicator write theirs by themselves.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from mpidl.comm import mpi

if TYPE_CHECKING:
    from mpi4py import MPI as MPITypes

# what a watched communicator announces; messages between two ranks are announced by those who send them
ANNOUNCED = (
    *(
        "Barrier",
        "Bcast",
        "Gather",
        "Gatherv",
        "Scatter",
        "Scatterv",
        "Allgather",
        "Allgatherv",
        "Alltoall",
        "Alltoallv",
    ),
    *(
        "Reduce",
        "Allreduce",
        "Reduce_scatter",
        "Scan",
        "Exscan",
        "barrier",
        "bcast",
        "gather",
        "scatter",
        "allgather",
    ),
    *(
        "alltoall",
        "reduce",
        "allreduce",
        "scan",
        "exscan",
        "Split",
        "Split_type",
        "Clone",
        "Dup",
        "Create",
        "Free",
    ),
)
_made: Counter[Any] = Counter()
_activities: weakref.WeakSet[Activity] = weakref.WeakSet()
_lock = threading.Lock()


class Activity:
    """The operations that this rank has begun with the ranks of one communicator, and the one under way.

    key: names the activity, alike on all its ranks, which make it together. world: their numbers in MPI.COMM_WORLD. count:
    operations begun. doing: (operation, buffer or None, what it computes and with which root, name) or None.
    """

    def __init__(self, comm: MPITypes.Comm, name: str) -> None:
        MPI = mpi.load()
        self.name, self.rank, self.size = name, int(comm.Get_rank()), int(comm.Get_size())
        self.world: list[int] = list(
            MPI.Group.Translate_ranks(
                comm.Get_group(), list(range(self.size)), MPI.COMM_WORLD.Get_group()
            )
        )
        same = (name, tuple(self.world))
        _made[same] += 1
        self.key: tuple[Any, ...] = (*same, _made[same])
        self.count = 0
        self.doing: tuple[Any, ...] | None = None
        with _lock:
            _activities.add(self)

    @contextmanager
    def during(self, what: str, buffer: Any = None, op: str = "", name: str = "") -> Iterator[None]:
        """While all ranks do `what` together."""
        before = self.doing
        self.count += 1
        self.doing = (what, buffer, op, name)
        try:
            yield
        finally:
            self.doing = before

    def forget(self) -> None:
        """Nobody watches this any more."""
        with _lock:
            _activities.discard(self)


def activities() -> list[Activity]:
    """All of this process."""
    with _lock:
        return list(_activities)


def watched(comm: MPITypes.Intracomm, activity: Activity) -> Any:
    """The same communicator, with collectives that announce themselves in `activity` unless something else is under way.

    Collective: mpi4py's first `allreduce` of a communicator waits for all ranks with Python's lock held, so that no watchdog
    could run; it is done here, where they meet anyway.
    """
    made = _watched_type()(comm)
    made.allreduce(0)
    made.activity = activity
    return made


@cache
def _watched_type() -> Any:
    plain = mpi.load().Intracomm
    methods = {name: _announcing(name, getattr(plain, name)) for name in ANNOUNCED}
    return type("Watched", (plain,), {"activity": None, **methods})


def _announcing(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        activity = self.activity
        if activity is None or activity.doing is not None:
            return method(self, *args, **kwargs)
        with activity.during(name):
            return method(self, *args, **kwargs)

    return call
