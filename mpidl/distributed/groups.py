"""Initialization, ranks, and groups of ranks (process sets)."""

from __future__ import annotations

import itertools
import operator
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mpidl.collectives import Group
from mpidl.collectives.safety import checks, watchdog
from mpidl.comm import context as ranks
from mpidl.comm import mpi
from mpidl.distributed.channel import Channel
from mpidl.errors import CollectiveError

if TYPE_CHECKING:
    from mpi4py import MPI as MPITypes

# One per process, as COMM_WORLD: the functions of this package have no object to find it in.
_world: ProcessGroup | None = None
_numbers = itertools.count(1)
_starting = threading.Lock()  # several threads may submit a first asynchronous operation at once


class ProcessGroup:
    """Ranks that communicate.

    Synchronous and asynchronous operations have separate communicators, so that their messages
    cannot be mixed up.

    Args:
        comm: Their communicator; None in a process that is not one of them.
        members: Their ranks in the world, ascending.
        name: For messages.
        threads: Whether asynchronous operations may run in a thread of their own.
        joinable: Whether ranks may run out of data before others (see `join`).

    Attributes:
        ranks: The members' ranks in the world.
        rank: Of this process in the group, -1 if it is not a member.
        active: (P,) booleans: which ranks of a joinable world had not joined at the last exchange.
    """

    def __init__(
        self,
        comm: MPITypes.Comm | None,
        members: Sequence[int],
        name: str,
        *,
        threads: bool,
        joinable: bool = False,
    ) -> None:
        self.ranks = tuple(members)
        self.name = name
        self.joinable = joinable
        self._group: Group | None = None
        self._async_group: Group | None = None
        if comm is not None:
            self._group = Group(comm, name=name)
            self._async_group = Group(comm, name=f"{name}, asynchronous") if threads else None
        self._async_channel: Channel | None = None
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
        """The group that the collectives use.

        Raises:
            CollectiveError: This process is not a member, the group has been freed, or an
                asynchronous operation failed whose handle was never waited for.
        """
        if self._group is None:
            raise self._unusable()
        if self._async_channel is not None and self._async_channel.failed:
            self._async_channel.raise_failed()
        return self._group

    def _unusable(self) -> CollectiveError:
        where = f"rank {rank()}"
        if self._freed:
            what = f"group {self.name!r} has been freed"
            return CollectiveError(what, where=where, remedy="make a new one")
        return CollectiveError(
            f"this process is not in group {self.name!r} of ranks {list(self.ranks)}",
            where=where,
            remedy="check group.included() before calling an operation of the group",
        )

    def async_channel(self) -> Channel:
        """The channel of the asynchronous operations; its thread starts at the first of them."""
        group = self.group()
        if self._async_channel is None:
            with _starting:
                if self._async_channel is None:
                    threaded = self._async_group is not None
                    self._async_channel = Channel(self._async_group or group, thread=threaded)
        return self._async_channel

    def free(self) -> None:
        """Free communicators and memory. Collective among the ranks of the group.

        Raises:
            CollectiveError: An asynchronous operation failed whose handle was never waited for.
        """
        if self._async_channel is not None:
            self._async_channel.close()
        for group in (self._async_group, self._group):
            if group is not None:
                group.free()
        self._group = None
        self._async_group = None
        self._freed = True
        if self._async_channel is not None:
            self._async_channel.raise_failed()


def init(
    comm: MPITypes.Intracomm | None = None,
    *,
    watchdog_seconds: float | None = None,
    joinable: bool = False,
) -> None:
    """Start. Collective; later calls have no effect.

    Args:
        comm: Used instead of all ranks.
        watchdog_seconds: How long a rank waits for others before the job ends; 0 for ever, None
            for MPIDL_WATCHDOG or 300.
        joinable: Ranks may run out of data before others and call `join`; costs a small exchange
            before every all-reduce.
    """
    global _world
    if _world is not None:
        return
    context = ranks.init(comm)
    watchdog.start(context.comm, watchdog_seconds)
    with watchdog.bounded():
        _world = ProcessGroup(
            context.comm,
            range(context.size),
            "world",
            threads=context.threads_allowed,
            joinable=joinable,
        )


def shutdown() -> None:
    """Free the world group, as `ProcessGroup.free`. Collective. MPI ends with the process."""
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
    """The rank of this process in the group, by default in the world; -1 if it is no member."""
    return resolve_group(group).rank


def size(group: ProcessGroup | None = None) -> int:
    """The number of ranks in the group, by default in the world."""
    return resolve_group(group).size


def resolve_group(group: ProcessGroup | None) -> ProcessGroup:
    """The group that an operation is called with, by default the world.

    Raises:
        CollectiveError: It is no group, or there is no world yet.
    """
    if group is None:
        return world()
    if not isinstance(group, ProcessGroup):
        raise CollectiveError(
            f"group is a {type(group).__name__}",
            remedy="pass what mpidl.distributed.new_group returns, or None for all ranks",
        )
    return group


def local_rank() -> int:
    """The rank of this process among those of its node."""
    world()
    return ranks.init().local_rank


def local_size() -> int:
    """The number of ranks on this node."""
    world()
    return ranks.init().local_size


def new_group(members: Iterable[int], name: str = "") -> ProcessGroup:
    """A group of some ranks of the world. Collective among all ranks of the world.

    Args:
        members: Ranks in the world, the same on all ranks; the group has them in ascending order.
        name: For messages, the same on all ranks.

    Raises:
        CollectiveError: A rank is not in the world or named twice; on all ranks where these pass
            different arguments.
    """
    everyone = world().group()
    named = _ranks(members, everyone.size)
    included = everyone.rank in named
    MPI = mpi.load()
    with everyone.during("new_group", None, f"ranks {named}", name):
        checks.agreement(everyone)
        comm = everyone.comm.Split(0 if included else MPI.UNDEFINED, everyone.rank)
    threads = ranks.init().threads_allowed
    made = ProcessGroup(
        comm if included else None, named, name or f"group {next(_numbers)}", threads=threads
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
