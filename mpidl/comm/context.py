"""The ranks of a job: placement, threads, and how all ranks stop together when one fails."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

from mpidl.comm import binding, launcher, mpi, objects
from mpidl.comm.activity import Activity, watched
from mpidl.comm.binding import Cores
from mpidl.comm.channels import CHANNELS
from mpidl.comm.objects import ErrorRecord
from mpidl.errors import MpidlError, SecurityError, notice, wrap
from mpidl.settings import CHANNEL

if TYPE_CHECKING:
    from mpi4py import MPI as MPITypes

T = TypeVar("T")
# One per process, as MPI itself: it can be initialized once, and the except hook needs to find it.
_context: Context | None = None


@dataclass(frozen=True)
class Context:
    """One rank's view of the job.

    Attributes:
        comm: A private clone of the communicator mpidl was started with.
        rank: Of this process in `comm`.
        size: Number of ranks.
        local_rank: Of this process among the ranks of its node.
        local_size: Number of ranks on this node.
        node: Index of this rank's node.
        nodes: Number of nodes.
        threads: Of this rank's BLAS and kernels.
        cores: Of the rank of the whole job that may use the smallest part of its share.
        thread_level: The level of thread support that MPI has granted.
        channel: What is encrypted: "off", "nodes" or "all".
    """

    comm: MPITypes.Intracomm
    rank: int
    size: int
    local_rank: int
    local_size: int
    node: int
    nodes: int
    threads: int
    cores: Cores
    thread_level: int
    channel: str = "off"

    @property
    def is_root(self) -> bool:
        """Whether this is rank 0, which prints and writes files."""
        return self.rank == 0

    @property
    def threads_allowed(self) -> bool:
        """Whether several threads of this process may call MPI at once."""
        return bool(self.thread_level >= mpi.load().THREAD_MULTIPLE)

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.comm.Barrier()

    def bcast_object(self, value: Any, kind: type[T], root: int = 0) -> T:
        """`value` of rank `root`, of type `kind`, on every rank (see `mpidl.comm.objects`)."""
        return objects.bcast(self.comm, value, kind, root)

    def allgather_object(self, value: Any, kind: type[T]) -> list[T]:
        """The values of all ranks, each of type `kind`, in rank order, on every rank."""
        return objects.allgather(self.comm, value, kind)

    def raise_on_all(self, error: Exception | None, activity: str) -> None:
        """Raise on every rank if any rank passes an error. Collective.

        Args:
            error: This rank's, or None.
            activity: What was going on ("reading shards"), for errors that do not say so.

        Raises:
            MpidlError: The error of the lowest failing rank.
        """
        first = objects.smallest(self.comm, self.size if error is None else self.rank)
        if first == self.size:
            return
        if error is not None and not isinstance(error, (MpidlError, OSError, MemoryError)):
            traceback.print_exception(error)
        record = None
        if error is not None:
            record = ErrorRecord.of(_shared_error(wrap(error, activity), self.rank))
        raise self.bcast_object(record, ErrorRecord, root=first).error() from error

    @contextmanager
    def fail_together(self, activity: str) -> Iterator[None]:
        """Collective block: an exception of one rank inside is raised on all ranks at its end.

        The block itself must not wait for other ranks.

        Args:
            activity: As in `raise_on_all`.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        self.raise_on_all(error, activity)

    @overload
    def on_root(self, function: Callable[[], object], activity: str) -> None: ...

    @overload
    def on_root(self, function: Callable[[], T], activity: str, kind: Any) -> T: ...

    def on_root(self, function: Callable[[], Any], activity: str, kind: Any = None) -> Any:
        """Run `function` on rank 0 only; its error reaches every rank.

        Args:
            function: What to do.
            activity: As in `raise_on_all`.
            kind: The type of its result; None: the result does not travel.

        Returns:
            The result, on every rank.
        """
        result: Any = None
        with self.fail_together(activity):
            if self.is_root:
                result = function()
        return None if kind is None else self.bcast_object(result, kind)

    def abort(self, status: int = 1) -> NoReturn:
        """End the whole job immediately; for errors that the other ranks cannot know of."""
        sys.stdout.flush()
        sys.stderr.flush()
        self.comm.Abort(status)
        os._exit(status)


def _shared_error(error: MpidlError, rank: int) -> MpidlError:
    """A copy of `error` for all ranks, which names the rank that raised it."""
    where = error.where
    if not where.startswith("rank "):
        where = f"rank {rank}, {where}" if where else f"rank {rank}"
    return error.replace(where=where, agreed=True)


def current() -> Context | None:
    """The context of this process if `init` has been called."""
    return _context


def init(comm: MPITypes.Intracomm | None = None) -> Context:
    """Initialize MPI once and describe this rank. Collective at the first call.

    Processor cores and BLAS threads are divided among the ranks of a node (see
    mpidl.comm.binding). Later calls without `comm` return the same context.

    Args:
        comm: Used, as a clone, instead of COMM_WORLD.
    """
    global _context
    if _context is not None and comm is None:
        return _context
    context = _make_context(comm)
    if CHANNEL.value != CHANNEL.default:
        # before any value of the job travels
        context = CHANNELS["tls-like"].from_environment().open(context)
    if context.is_root and (problem := context.cores.problem()):
        notice(str(problem))
    if comm is None:
        _context = context
        if context.size > 1:
            sys.excepthook = _abort_job
    return context


def protect(context: Context, comm: Any, channel: str) -> Context:
    """The same ranks with another communicator, also for those who call `init` later.

    Args:
        context: The ranks.
        comm: Protects their messages.
        channel: What of them, as `Context.channel`.
    """
    global _context
    protected = replace(context, comm=comm, channel=channel)
    if _context is context:
        _context = protected
    return protected


def _make_context(comm: MPITypes.Intracomm | None) -> Context:
    MPI = mpi.initialize()
    launcher.check(MPI.COMM_WORLD.Get_size(), MPI.Get_library_version())
    own = (comm or MPI.COMM_WORLD).Clone()
    own = watched(own, Activity(own, "job"))
    node_comm = own.Split_type(MPI.COMM_TYPE_SHARED, own.Get_rank())
    allowed = objects.allgather(node_comm, binding.allowed_cores(), tuple[int, ...])
    cores, threads = binding.bind(node_comm.Get_rank(), allowed)
    mine = node_comm.Get_rank() == 0, cores, CHANNEL.value
    ranks = objects.allgather(own, mine, tuple[bool, Cores, str])
    _check_channels([channel for _, _, channel in ranks])
    leaders = [rank for rank, (leads, _, _) in enumerate(ranks) if leads]
    context = Context(
        comm=own,
        rank=own.Get_rank(),
        size=own.Get_size(),
        local_rank=node_comm.Get_rank(),
        local_size=node_comm.Get_size(),
        node=leaders.index(objects.bcast(node_comm, own.Get_rank(), int)),
        nodes=len(leaders),
        threads=threads,
        cores=min((cores for _, cores, _ in ranks), key=lambda cores: cores.used / cores.allotted),
        thread_level=MPI.Query_thread(),
    )
    node_comm.Free()
    return context


def _check_channels(channels: list[str]) -> None:
    """Refuse ranks that would encrypt differently: they would wait for each other for ever."""
    for rank, channel in enumerate(channels):
        if channel != channels[0]:
            raise SecurityError(
                f"rank 0 has {CHANNEL.name}={channels[0]}, rank {rank} has {channel}",
                where=CHANNEL.name,
                remedy="give all ranks the same environment (mpirun -x, sbatch --export)",
                agreed=True,
            )


def _abort_job(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """End all ranks after an uncaught exception on one: the others would wait for it forever."""
    sys.__excepthook__(kind, error, trace)
    if _context is not None:
        _context.abort(1)
