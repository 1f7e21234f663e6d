"""Starting up, who is who, and groups of ranks (process sets)."""

from __future__ import annotations

import operator
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mpidl.collectives import Group
from mpidl.collectives.safety import checks, watchdog
from mpidl.comm import context as ranks
from mpidl.comm import mpi
from mpidl.distributed.channel import Channel
from mpidl.errors import CollectiveError

_world: ProcessGroup | None = None
_made = 0
_making = threading.Lock()


class ProcessGroup:
    """Ranks that communicate. ranks: their numbers in the world; rank: this process in the group, -1 if it is not in it.

    Synchronous and asynchronous operations have communicators of their own, so that they cannot meet. active: in a joinable
    world, which ranks had not joined when the ranks last met.
    """

    def __init__(
        self, comm: Any, members: Sequence[int], name: str, *, threads: bool, joinable: bool = False
    ) -> None:
        self.ranks, self.name, self.joinable = tuple(members), name, joinable
        self._group = Group(comm, name=name) if comm is not None else None
        self._behind = (
            Group(comm, name=f"{name}, asynchronous") if comm is not None and threads else None
        )
        self._channel: Channel | None = None
        self._freed = False
        self.rank = self._group.rank if self._group is not None else -1
        self.active = np.ones(len(self.ranks), bool)

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.ranks)

    def included(self) -> bool:
        """Whether this process is one of its ranks."""
        return self._group is not None

    def group(self) -> Group:
        """What the collectives work with.

        Raises CollectiveError in a process that is not in the group, and the error of an asynchronous operation that nobody has
        waited for.
        """
        if self._group is None:
            raise CollectiveError(
                f"group {self.name!r} has been freed"
                if self._freed
                else f"this process is not in group {self.name!r} of ranks {list(self.ranks)}",
                where=f"rank {rank()}",
                remedy="make a new one"
                if self._freed
                else "ask group.included() before you call an operation of the group",
            )
        if self._channel is not None and self._channel.failed:
            self._channel.raise_failed()
        return self._group

    def channel(self) -> Channel:
        """The thread of the asynchronous operations."""
        group = self.group()
        if self._channel is None:
            with _making:  # several threads may begin at once
                if self._channel is None:
                    self._channel = Channel(self._behind or group, thread=self._behind is not None)
        return self._channel

    def free(self) -> None:
        """Give everything back. Collective among the ranks of the group. Raises errors that nobody has waited for."""
        if self._channel is not None:
            self._channel.close()
        for group in (self._behind, self._group):
            if group is not None:
                group.free()
        self._group, self._behind, self._freed = None, None, True
        if self._channel is not None:
            self._channel.raise_failed()


def init(
    comm: Any = None, *, watchdog_seconds: float | None = None, joinable: bool = False
) -> None:
    """Start; collective, and harmless the second time.

    comm: an mpi4py communicator instead of all ranks. watchdog_seconds: see mpidl.collectives.safety.watchdog. joinable: ranks may run
    out of data before others and call `join`; costs a small exchange before every all-reduce.
    """
    global _world
    if _world is not None:
        return
    context = ranks.init(comm)
    watchdog.start(context.comm, watchdog_seconds)
    _world = ProcessGroup(
        context.comm,
        range(context.size),
        "world",
        threads=context.threads_allowed,
        joinable=joinable,
    )


def shutdown() -> None:
    """Free the world group; collective. MPI itself ends with the process. Raises errors that nobody has waited for."""
    global _world
    own, _world = world(), None
    own.free()


def is_initialized() -> bool:
    """Whether `init` has been called."""
    return _world is not None


def world() -> ProcessGroup:
    """The group of all ranks."""
    if _world is None:
        raise CollectiveError(
            "mpidl.distributed is not initialized", remedy="call mpidl.distributed.init() first"
        )
    return _world


def rank(group: ProcessGroup | None = None) -> int:
    """This process's number in the group, by default among all."""
    return chosen(group).rank


def size(group: ProcessGroup | None = None) -> int:
    """The number of ranks in the group, by default of all."""
    return chosen(group).size


def chosen(group: ProcessGroup | None) -> ProcessGroup:
    """The group that an operation is given, by default the world."""
    if group is None:
        return world()
    if not isinstance(group, ProcessGroup):
        raise CollectiveError(
            f"group is a {type(group).__name__}",
            remedy="pass what mpidl.distributed.new_group returns, or None for all ranks",
        )
    return group


def local_rank() -> int:
    """This process's number on its node."""
    world()
    return ranks.init().local_rank


def local_size() -> int:
    """The number of ranks on this node."""
    world()
    return ranks.init().local_size


def new_group(members: Iterable[int], name: str = "") -> ProcessGroup:
    """A group of some ranks, in the order of their numbers. Called by all ranks of the world, with the same ranks and names.

    Raises CollectiveError for ranks that are not in the world or named twice, and on all ranks where these disagree.
    """
    global _made
    everyone = world().group()
    named = _ranks(members, everyone.size)
    _made += 1
    included, MPI = everyone.rank in named, mpi.load()
    with everyone.during("new_group", None, f"ranks {named}", name):
        checks.agreement(everyone)
        comm = everyone.comm.Split(0 if included else MPI.UNDEFINED, everyone.rank)
    threads = ranks.init().threads_allowed
    made = ProcessGroup(
        comm if included else None, named, name or f"group {_made}", threads=threads
    )
    if included:
        comm.Free()
    return made


def _ranks(members: Any, size: int) -> list[int]:
    try:
        given = [operator.index(member) for member in members]
    except TypeError:
        given = []
    named = sorted(set(given))
    if not named or named[0] < 0 or named[-1] >= size or len(named) != len(given):
        raise CollectiveError(
            f"cannot make a group of ranks {members!r}",
            remedy=f"name each of 0 to {size - 1} at most once",
        )
    return named


add_process_set = new_group
