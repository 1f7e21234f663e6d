"""One-sided access to the memory of other ranks (MPI passive target)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mpidl.collectives.schedule import segments
from mpidl.comm import mpi, transport
from mpidl.comm.protected import plain

if TYPE_CHECKING:
    from mpi4py import MPI as MPITypes

# What uses windows, and what does the same by messages
ENCRYPTED = (
    "set sync.strategy = gossip, parameter_server or another one that sends messages, or encrypt "
    "between nodes only, with all ranks of the window on one node"
)


class Window:
    """Memory of every rank of a communicator that all of them read and change, without its owner.

    One epoch of access spans the life of the window. Operations are atomic by element: an element
    is read or changed whole, several of them may be older and newer.

    Args:
        comm: The ranks; making a window is collective.
        count: Elements of this rank's memory, which starts as zeros; may be 0.
        dtype: Of the elements, alike on all ranks.
        shared: All ranks are on one node and can map the memory (`shared_memory`).
    """

    def __init__(
        self, comm: MPITypes.Intracomm, count: int, dtype: DTypeLike, *, shared: bool = False
    ) -> None:
        MPI = mpi.load()
        comm = plain(comm, "one-sided access to memory", ENCRYPTED)
        self.comm = comm
        self.dtype = np.dtype(dtype)
        allocate = MPI.Win.Allocate_shared if shared else MPI.Win.Allocate
        self.win = allocate(count * self.dtype.itemsize, self.dtype.itemsize, MPI.INFO_NULL, comm)
        if count:
            np.frombuffer(self.win.tomemory(), self.dtype)[...] = 0
        comm.Barrier()
        self.win.Lock_all()
        self._open = True
        mpi.before_finalize(self.free)

    def shared_memory(self, rank: int) -> NDArray[Any]:
        """The memory of `rank` itself, (count,); of a window made with `shared`."""
        memory, _ = self.win.Shared_query(rank)
        return np.frombuffer(memory, self.dtype)

    def get(self, rank: int, out: NDArray[Any], offset: int = 0) -> None:
        """Read the memory of `rank` from element `offset` on into `out` (n,)."""
        MPI = mpi.load()
        # Get_accumulate with NO_OP: atomic by element where a Get is not
        for start, stop in segments((0, out.size), transport.MOST):
            self.win.Get_accumulate(
                np.empty(0, self.dtype),
                out[start:stop],
                rank,
                (offset + start, stop - start),
                MPI.NO_OP,
            )
        self.win.Flush(rank)

    def accumulate(self, rank: int, values: NDArray[Any], offset: int = 0) -> None:
        """Add `values` (n,) to the memory of `rank` from element `offset` on."""
        MPI = mpi.load()
        values = np.ascontiguousarray(values, self.dtype)
        for start, stop in segments((0, values.size), transport.MOST):
            target = (offset + start, stop - start)
            self.win.Accumulate(values[start:stop], rank, target, MPI.SUM)
        self.win.Flush(rank)

    def fetch_and_add(self, rank: int, offset: int = 0, increment: int = 1) -> int:
        """Add to one integer of `rank`; returns its value before."""
        before = np.zeros(1, self.dtype)
        increments = np.array([increment], self.dtype)
        self.win.Fetch_and_op(increments, before, rank, offset, mpi.load().SUM)
        self.win.Flush(rank)
        return int(before[0])

    def fetch(self, rank: int, offset: int = 0) -> int:
        """One integer of `rank`."""
        return self.fetch_and_add(rank, offset, 0)

    def reset(self, rank: int, offset: int = 0) -> None:
        """Set one integer of `rank` to 0; no other rank may access it meanwhile."""
        self.fetch_and_add(rank, offset, -self.fetch(rank, offset))

    def replace(self, rank: int, values: NDArray[Any]) -> None:
        """Set the memory of `rank` to `values` (n,); no other rank may access it meanwhile."""
        current = np.empty_like(values)
        self.get(rank, current)
        self.accumulate(rank, values - current)

    def free(self) -> None:
        """Release the memory. Collective."""
        if self._open:
            self._open = False
            self.win.Unlock_all()
            self.win.Free()
