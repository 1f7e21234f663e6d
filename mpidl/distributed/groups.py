"""Starting up, who is who, and groups of ranks (process sets)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpidl.collectives import Group, watchdog
from mpidl.comm import context as ranks
from mpidl.comm import mpi
from mpidl.errors import CollectiveError
from mpidl.sync.worker import Worker

_world: ProcessGroup | None = None
_made = 0


class ProcessGroup:
    """Ranks that communicate. ranks: their numbers in the world; rank: this process in the group, -1 if it is not in it.

    Synchronous and asynchronous operations have communicators of their own, so that they cannot meet.
    """

    def __init__(self, comm: Any, members: Sequence[int], name: str, *, threads: bool, joinable: bool = False) -> None:
        self.ranks, self.name, self.joinable = tuple(members), name, joinable
        self._group = Group(comm, name=name) if comm is not None else None
        self._behind = Group(comm, name=f"{name}, asynchronous") if comm is not None and threads else None
        self._worker: Worker | None = None
        self.rank = self._group.rank if self._group is not None else -1
        self.joined = False

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.ranks)

    def included(self) -> bool:
        """Whether this process is one of its ranks."""
        return self._group is not None

    def group(self) -> Group:
        """What the collectives work with. Raises CollectiveError in a process that is not in the group."""
        if self._group is None:
            raise CollectiveError(
                f"this process is not in group {self.name!r} of ranks {list(self.ranks)}",
                where=f"rank {rank()}",
                remedy="ask group.included() before you call an operation of the group",
            )
        return self._group

    def behind(self) -> tuple[Group, Worker] | None:
        """Group and thread of the asynchronous operations; None where MPI does not allow threads."""
        self.group()
        if self._behind is None:
            return None
        if self._worker is None:
            self._worker = Worker()
        return self._behind, self._worker

    def free(self) -> None:
        """Give everything back. Collective among the ranks of the group."""
        if self._worker is not None:
            self._worker.close()
        for group in (self._behind, self._group):
            if group is not None:
                group.free()
        self._group = self._behind = None


def init(comm: Any = None, *, watchdog_seconds: float | None = None, joinable: bool = False) -> None:
    """Start; collective, and harmless the second time.

    comm: an mpi4py communicator instead of all ranks. watchdog_seconds: see mpidl.collectives.watchdog. joinable: ranks may run
    out of data before others and call `join`; costs a small exchange before every all-reduce.
    """
    global _world
    if _world is not None:
        return
    context = ranks.init(comm)
    watchdog.start(context.comm, watchdog_seconds)
    _world = ProcessGroup(context.comm, range(context.size), "world", threads=context.threads_allowed, joinable=joinable)


def shutdown() -> None:
    """Free the world group; collective. MPI itself ends with the process."""
    global _world
    world().free()
    _world = None


def is_initialized() -> bool:
    """Whether `init` has been called."""
    return _world is not None


def world() -> ProcessGroup:
    """The group of all ranks."""
    if _world is None:
        raise CollectiveError("mpidl.distributed is not initialised", remedy="call mpidl.distributed.init() first")
    return _world


def rank(group: ProcessGroup | None = None) -> int:
    """This process's number in the group, by default among all."""
    return (group or world()).rank


def size(group: ProcessGroup | None = None) -> int:
    """The number of ranks in the group, by default of all."""
    return (group or world()).size


def local_rank() -> int:
    """This process's number on its node."""
    world()
    return ranks.init().local_rank


def local_size() -> int:
    """The number of ranks on this node."""
    world()
    return ranks.init().local_size


def new_group(members: Sequence[int], name: str = "") -> ProcessGroup:
    """A group of some ranks, in the order of their numbers. Called by all ranks of the world, in the same order."""
    global _made
    everyone = world().group()
    chosen = sorted(set(members))
    if not chosen or chosen[0] < 0 or chosen[-1] >= everyone.size or len(chosen) != len(members):
        raise CollectiveError(
            f"cannot make a group of ranks {list(members)}", remedy=f"name each of 0 to {everyone.size - 1} at most once"
        )
    _made += 1
    included, MPI = everyone.rank in chosen, mpi.load()
    comm = everyone.comm.Split(0 if included else MPI.UNDEFINED, everyone.rank)
    threads = ranks.init().threads_allowed
    made = ProcessGroup(comm if included else None, chosen, name or f"group {_made}", threads=threads)
    if included:
        comm.Free()
    return made


add_process_set = new_group
