"""The ranks of a job: who we are, which node we share, and how all ranks stop together when one of them fails."""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from mpidl.comm import binding, launcher, mpi
from mpidl.comm.activity import Activity, watched
from mpidl.comm.binding import Cores
from mpidl.errors import MpidlError, notice, wrap

T = TypeVar("T")
_context: Context | None = None


@dataclass(frozen=True)
class Context:
    """One rank's view of the job. `comm` is a private clone of the communicator mpidl was started with.

    threads: of this rank's BLAS and kernels. cores: of that rank of the whole job that may use the smallest part of its share.
    """

    comm: Any
    rank: int
    size: int
    local_rank: int
    local_size: int
    node: int
    nodes: int
    threads: int
    cores: Cores
    thread_level: int

    @property
    def is_root(self) -> bool:
        """Whether this is rank 0, the one that talks to the user."""
        return self.rank == 0

    @property
    def threads_allowed(self) -> bool:
        """Whether several threads of this process may call MPI at once."""
        return bool(self.thread_level >= mpi.load().THREAD_MULTIPLE)

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.comm.Barrier()

    def bcast_object(self, value: T, root: int = 0) -> T:
        """`value` of rank `root`, pickled, on every rank."""
        result: T = self.comm.bcast(value, root=root)
        return result

    def allgather_object(self, value: T) -> list[T]:
        """The values of all ranks, in the order of ranks, on every rank."""
        result: list[T] = self.comm.allgather(value)
        return result

    def raise_on_all(self, error: Exception | None, doing: str) -> None:
        """Collective: raise on every rank if any rank brings an error; the message is the lowest failing rank's.

        doing: what was going on ("reading shards"), for errors that do not say so themselves.
        """
        MPI = mpi.load()
        first = self.comm.allreduce(self.size if error is None else self.rank, op=MPI.MIN)
        if first == self.size:
            return
        if error is not None and not isinstance(error, (MpidlError, OSError, MemoryError)):
            traceback.print_exception(error)
        payload = (
            pickle.dumps(_portable(wrap(error, doing), self.rank)) if error is not None else b""
        )
        shared: MpidlError = pickle.loads(self.comm.bcast(payload, root=first))
        raise shared from error

    @contextmanager
    def fail_together(self, doing: str) -> Iterator[None]:
        """Collective block: an exception on one rank inside it is raised on all ranks at its end.

        The block itself must not wait for other ranks.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        self.raise_on_all(error, doing)

    def on_root(self, function: Callable[[], T], doing: str) -> T:
        """Run `function` on rank 0; its result, or its error, reaches every rank."""
        result: Any = None
        with self.fail_together(doing):
            if self.is_root:
                result = function()
        shared: T = self.bcast_object(result)
        return shared

    def abort(self, status: int = 1) -> NoReturn:
        """End the whole job at once; for errors that the other ranks cannot know of."""
        sys.stdout.flush()
        sys.stderr.flush()
        self.comm.Abort(status)
        os._exit(status)


def _portable(error: MpidlError, rank: int) -> MpidlError:
    """A copy of `error` that can be pickled and says which rank saw it."""
    where = (
        error.where
        if error.where.startswith("rank ")
        else f"rank {rank}" + (f", {error.where}" if error.where else "")
    )
    return type(error)(error.what, where=where, remedy=error.remedy, agreed=True)


def current() -> Context | None:
    """The context of this process if `init` has been called."""
    return _context


def init(comm: Any = None) -> Context:
    """Initialize MPI once and describe this rank; later calls without `comm` return the same context.

    comm: an mpi4py communicator to use instead of COMM_WORLD; it is cloned. Processor cores and BLAS threads are divided
    among the ranks of a node (see mpidl.comm.binding).
    """
    global _context
    if _context is not None and comm is None:
        return _context
    MPI = mpi.initialize()
    launcher.check(MPI.COMM_WORLD.Get_size(), MPI.Get_library_version())
    own = (comm or MPI.COMM_WORLD).Clone()
    own = watched(own, Activity(own, "job"))
    node_comm = own.Split_type(MPI.COMM_TYPE_SHARED, own.Get_rank())
    cores, threads = binding.bind(
        node_comm.Get_rank(), node_comm.allgather(binding.allowed_cores())
    )
    ranks = own.allgather((node_comm.Get_rank() == 0, cores))
    heads = [rank for rank, (leader, _) in enumerate(ranks) if leader]
    node = heads.index(node_comm.bcast(own.Get_rank(), root=0))
    context = Context(
        comm=own,
        rank=own.Get_rank(),
        size=own.Get_size(),
        local_rank=node_comm.Get_rank(),
        local_size=node_comm.Get_size(),
        node=node,
        nodes=len(heads),
        threads=threads,
        cores=min((cores for _, cores in ranks), key=lambda cores: cores.used / cores.allotted),
        thread_level=MPI.Query_thread(),
    )
    node_comm.Free()
    if context.is_root and (problem := context.cores.problem()):
        notice(str(problem))
    if comm is None:
        _context = context
        if context.size > 1:
            sys.excepthook = _end_the_job
    return context


def _end_the_job(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """An exception that nobody caught on one rank ends all: the others would wait for it for ever."""
    sys.__excepthook__(kind, error, trace)
    if _context is not None:
        _context.abort(1)
