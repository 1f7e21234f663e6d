"""A communicator with what collectives need besides it: the placement of its ranks, their shared memory, reused buffers."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from mpidl.collectives.engine.shared import FOLDER, SharedNode, has_room
from mpidl.collectives.schedule import Algorithm, Exchange, Round
from mpidl.comm import mpi
from mpidl.comm.activity import Activity, watched
from mpidl.comm.transport import array_module, gpu_aware
from mpidl.errors import CollectiveError, notice
from mpidl.settings import GUARD

if TYPE_CHECKING:
    from mpi4py import MPI as MPITypes

PLANS, LONGEST = 256, 64  # schedules that a group keeps, and rounds that a kept one may have
_keyval: int | None = None
_latest: tuple[Any, Any] = (
    None,
    None,
)  # looking up the attribute of a communicator takes a microsecond


class Plan(list[Round]):
    """A whole schedule of one rank. plain: whether all its rounds are exchanges."""

    def __init__(self, rounds: Iterable[Round]) -> None:
        super().__init__(rounds)
        self.plain = all(type(step) is Exchange for step in self)


class Group(Activity):
    """Ranks that do collectives together; made and freed by all of them together.

    nodes: the node of each rank, numbered in the order of their first ranks. shared: the ranks of this node and their common
    memory; None for a rank that is alone on its node, and for all where one node has no room for that memory.
    """

    def __init__(self, comm: MPITypes.Comm, *, name: str = "world") -> None:
        super().__init__(comm, name)
        with self.during("making the group"):
            self._set_up(comm)

    def _set_up(self, comm: MPITypes.Comm) -> None:
        MPI = mpi.load()
        self.comm = watched(MPI.Intracomm(comm).Clone(), self)
        self.nobody = MPI.PROC_NULL
        node_comm = self.comm.Split_type(MPI.COMM_TYPE_SHARED, self.rank)
        firsts = self.comm.allgather(node_comm.bcast(self.rank, root=0))
        order = {first: index for index, first in enumerate(dict.fromkeys(firsts))}
        self.nodes = tuple(order[first] for first in firsts)
        self.node_count = len(order)
        self.node_comm = node_comm
        self.shared: Any = (
            SharedNode(node_comm, self) if self._may_share() and node_comm.Get_size() > 1 else None
        )
        self.shares = bool(self.comm.allreduce(int(self.shared is not None), op=MPI.MAX))
        self.gpu_aware = gpu_aware()
        self.guard = GUARD.value
        self.fast = (
            self.shared
            if self.node_count == 1 and self.shared is not None and self.shared.compiled
            else None
        )
        self.guard_buffer = np.zeros(4, np.int64)
        self._plans: dict[tuple[Algorithm, int], Plan] = {}
        self._scratch: dict[tuple[Any, ...], Any] = {}

    def _may_share(self) -> bool:
        MPI = mpi.load()
        room = self.comm.allreduce(int(has_room(self.node_comm.Get_size())), op=MPI.MIN)
        if not room and self.rank == 0:
            _notice_once(
                f"{FOLDER} has no room for shared windows on some node: slower collectives by messages instead"
            )
        return bool(room)

    def scratch(self, like: Any, count: int, turn: int) -> Any:
        """Reused memory of `count` elements, of the type and in the kind of memory of `like`; `turn` 0 or 1."""
        key = (like.dtype.num, type(like), turn)
        held = self._scratch.get(key)
        if held is None or held.size < count:
            held = self._scratch[key] = array_module(like).empty(count, like.dtype)
        return held[:count]

    def plan(self, algorithm: Algorithm, length: int) -> Iterable[Round]:
        """This rank's rounds; short schedules are kept, since writing them takes longer than a small message."""
        key = (algorithm, length)
        held = self._plans.get(key)
        if held is not None:
            return held
        rounds = Plan(islice(schedule := algorithm(self.rank, self.size, length), LONGEST + 1))
        if len(rounds) > LONGEST:
            return chain(rounds, schedule)
        if len(self._plans) >= PLANS:
            self._plans.clear()
        self._plans[key] = rounds
        return rounds

    def free(self) -> None:
        """Give communicators and shared memory back. Collective."""
        global _latest
        _latest = (None, None)
        self.forget()
        if self.shared is not None:
            self.shared.free()
        self.node_comm.Free()
        self.comm.Free()


_notice_once = cache(notice)


def get_group(comm: MPITypes.Intracomm) -> Group:
    """The group of an mpi4py communicator; made at the first call, which is collective. A Group is returned as it is."""
    global _keyval, _latest
    if comm is _latest[0]:
        known: Group = _latest[1]
        return known
    if isinstance(comm, Group):
        return comm
    MPI = mpi.load()
    if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
        raise CollectiveError(
            f"a collective needs a communicator, got {type(comm).__name__}",
            remedy="pass a Group or an mpi4py communicator (mpidl.comm.context.init().comm has all ranks)",
        )
    if _keyval is None:
        _keyval = MPI.Comm.Create_keyval(delete_fn=lambda comm, keyval, group: group.free())
    held = comm.Get_attr(_keyval)
    if held is None:
        held = Group(comm)
        comm.Set_attr(_keyval, held)
    _latest = (comm, held)
    group: Group = held
    return group
