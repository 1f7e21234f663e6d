"""A communicator with the placement of its ranks and what collectives keep between calls."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from mpidl.collectives.engine.plans import PlanCache, Scratch
from mpidl.collectives.engine.shared import FOLDER, SharedNode, has_room
from mpidl.comm import mpi, objects
from mpidl.comm.activity import Activity, watched
from mpidl.comm.protected import Protected, clone, is_protected
from mpidl.comm.transport import gpu_aware
from mpidl.errors import CollectiveError, notice
from mpidl.settings import GUARD

if TYPE_CHECKING:
    from mpi4py import MPI as MPITypes

# MPI's own registry of attributes is process-wide: groups of mpi4py communicators are freed by it.
_keyval: int | None = None
# The last communicator and its group: asking MPI for the attribute takes a microsecond.
_latest: tuple[Any, Any] = (None, None)
_notice_once = cache(notice)


class Group(Activity):
    """Ranks that do collectives together; made and freed by all of them together.

    Args:
        comm: The ranks; it is cloned.
        name: For people, as "world".

    Attributes:
        comm: The private communicator.
        nodes: The node of each rank, numbered in the order of their first ranks.
        node_count: Number of nodes.
        node_comm: The ranks of this node.
        shared: The ranks of this node and their common memory; None for a rank that is alone on its
            node, and for all where one node has no room for that memory.
        shares: Some node has common memory.
        fast: `shared`, where all ranks are on one node and there are C kernels.
        protected: Messages are encrypted; nothing goes over MPI's own collectives.
        requests: Completes the requests of `comm`.
        gpu_aware: MPI reads device memory.
        guard: "on", "off" or "auto": whether ranks compare their calls before they exchange.
        plan: Algorithm and length -> this rank's rounds.
        scratch: Memory to receive into.
    """

    def __init__(self, comm: MPITypes.Comm, *, name: str = "world") -> None:
        super().__init__(comm, name)
        with self.during("making the group"):
            self._connect(comm)
        self.gpu_aware = not self.protected and gpu_aware()
        self.guard = GUARD.value
        self.guard_buffer = np.zeros(4, np.int64)
        self.plan = PlanCache(self.rank, self.size)
        self.scratch = Scratch()

    def _connect(self, comm: MPITypes.Comm) -> None:
        MPI = mpi.load()
        self.comm = watched(clone(comm), self)
        self.protected = is_protected(comm)
        self.requests = self.comm.requests if self.protected else MPI.Request
        self.nobody = MPI.PROC_NULL
        self.node_comm = self.comm.Split_type(MPI.COMM_TYPE_SHARED, self.rank)
        first = objects.bcast(self.node_comm, self.rank, int)
        first_ranks = objects.allgather(self.comm, first, int)
        order = {first: index for index, first in enumerate(dict.fromkeys(first_ranks))}
        self.nodes = tuple(order[first] for first in first_ranks)
        self.node_count = len(order)
        shareable = not self.protected or self.comm.shares_memory
        several = shareable and self._may_share() and self.node_comm.Get_size() > 1
        self.shared: Any = SharedNode(self.node_comm, self) if several else None
        self.shares = bool(objects.largest(self.comm, self.shared is not None))
        kernels = self.shared is not None and self.shared.compiled
        self.fast = self.shared if self.node_count == 1 and kernels else None

    def _may_share(self) -> bool:
        room = objects.smallest(self.comm, int(has_room(self.node_comm.Get_size())))
        if not room and self.rank == 0:
            _notice_once(
                f"{FOLDER} has no room for shared windows on some node: slower collectives by "
                "messages instead"
            )
        return bool(room)

    def free(self) -> None:
        """Free communicators and shared memory. Collective."""
        global _latest
        _latest = (None, None)
        self.forget()
        if self.shared is not None:
            self.shared.free()
        self.node_comm.Free()
        self.comm.Free()


def get_group(comm: MPITypes.Intracomm | Group) -> Group:
    """The group of an mpi4py communicator; a Group is returned as it is.

    The first call for a communicator makes its group, and is collective.

    Raises:
        CollectiveError: That is no communicator.
    """
    global _keyval, _latest
    if comm is _latest[0]:
        known: Group = _latest[1]
        return known
    if isinstance(comm, Group):
        return comm
    MPI = mpi.load()
    if not isinstance(comm, (MPI.Intracomm, Protected)) or comm == MPI.COMM_NULL:
        raise CollectiveError(
            f"a collective needs a communicator, got {type(comm).__name__}",
            remedy="pass a Group or an mpi4py communicator "
            "(mpidl.comm.context.init().comm has all ranks)",
        )
    if _keyval is None:
        _keyval = MPI.Comm.Create_keyval(delete_fn=lambda comm, keyval, group: group.free())
    group: Group | None = comm.Get_attr(_keyval)
    if group is None:
        group = Group(comm)
        comm.Set_attr(_keyval, group)
    _latest = (comm, group)
    return group
