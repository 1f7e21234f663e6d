"""The ranks of one node and a window of memory that all of them map (`MPI.Win.Allocate_shared`)."""

from __future__ import annotations

import ctypes
import resource
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpidl.backend.kernels import load_library
from mpidl.collectives.engine.reduction import (
    CODES,
    MEAN,
    NUMBERS,
    OP_CODES,
    call_hash,
    is_half,
    tree_reduce,
)
from mpidl.comm import binding, mpi, objects
from mpidl.comm.activity import Call
from mpidl.errors import CollectiveError

if TYPE_CHECKING:
    from mpi4py import MPI as MPITypes

LINES = 4096  # bytes of a rank's control line, with room
SLOT = 1 << 18  # bytes of each of its two slots
SMALL = 1 << 14  # bytes up to which one round is enough
DIRECT = 8 << 20  # bytes from which on ranks read each other's memory
SEGMENT = 128 << 10  # bytes of scratch for each rank; as in shared.c
MAX_RANKS = 1024  # of a node, for the C kernel; as in shared.c
SPINS = 4000
WHAT = {"all_reduce": 0, "reduce": 1, "broadcast": 2}
COMPARE = 3
FOLDER = Path("/dev/shm")  # where MPI libraries keep the shared windows of a Linux node
# What the short way of `api.all_reduce` takes, by operation: ({number of a dtype: its code},
# operation, mark). Dtypes that Python's buffer protocol knows and that need no staging or checks.
FAST = {
    op: (
        {
            dtype.num: code
            for dtype, code in CODES.items()
            if not is_half(dtype) and (op != MEAN or dtype.kind == "f")
        },
        op_code,
        call_hash(Call("all_reduce", None, op)),
    )
    for op, op_code in OP_CODES.items()
}


class _Node(ctypes.Structure):
    """`node_state` of shared.c."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("rank", "size", "slot_bytes", "small_bytes", "direct_bytes", "spins")
        ),
        ("turn", ctypes.c_uint64),
        *((name, ctypes.c_void_p) for name in ("lines", "slots", "scratch")),
    ]


def has_room(ranks: int) -> bool:
    """Whether this process may make a window for so many ranks.

    MPI hangs or dies where the memory cannot be had.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    free = shutil.disk_usage(FOLDER).free if FOLDER.is_dir() else 1 << 62
    return ranks * (LINES + 2 * SLOT) <= (
        free if limit == resource.RLIM_INFINITY else min(free, limit)
    )


class SharedNode:
    """Collectives among the ranks of a node.

    Args:
        comm: The ranks of the node.
        owner: The group they belong to.

    Attributes:
        ranks: Their numbers in the group.
        compiled: By the C kernel; else by NumPy and barriers.
    """

    def __init__(self, comm: MPITypes.Intracomm, owner: Any) -> None:
        self.comm = comm
        self.rank = comm.Get_rank()
        self.size = comm.Get_size()
        self.owner = owner
        self.ranks: list[int] = objects.allgather(comm, owner.rank, int)
        MPI = mpi.load()
        self._window = MPI.Win.Allocate_shared(LINES + 2 * SLOT, 1, comm=comm)
        self._memory = [
            np.frombuffer(self._window.Shared_query(rank)[0], np.uint8) for rank in range(self.size)
        ]
        self._memory[self.rank][:] = 0
        library = load_library()
        # also a barrier: afterwards all memory is zero
        usable = library is not None and self.size <= MAX_RANKS
        self.compiled = bool(objects.smallest(comm, int(usable)))
        if self.compiled and library is not None:
            self._prepare(library[0])

    def _prepare(self, library: ctypes.CDLL) -> None:
        addresses = [memory.ctypes.data for memory in self._memory]
        pointers = ctypes.c_void_p * self.size
        self._lines, self._slots = (
            pointers(*addresses),
            pointers(*(address + LINES for address in addresses)),
        )
        self._scratch: NDArray[Any] = np.zeros(self.size * SEGMENT, np.uint8)
        allowed = objects.allgather(self.comm, binding.allowed_cores(), tuple[int, ...])
        crowded = self.size > len(set().union(*allowed))
        self._node = _Node(
            *(self.rank, self.size, SLOT, SMALL, DIRECT, 0 if crowded else SPINS, 0),
            ctypes.cast(self._lines, ctypes.c_void_p),
            ctypes.cast(self._slots, ctypes.c_void_p),
            self._scratch.ctypes.data,
        )
        self._kernel = library.mpidl_shared
        self._kernel.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int64,
            *[ctypes.c_int] * 5,
            ctypes.c_uint64,
        ]
        self.node_address = ctypes.addressof(self._node)
        self.kernel_address = ctypes.cast(self._kernel, ctypes.c_void_p).value
        readable = library.mpidl_shared_probe(ctypes.c_void_p(self.node_address))
        if not objects.smallest(self.comm, readable):
            self._node.direct_bytes = 1 << 62

    @property
    def mark(self) -> int:
        """The hash of the collective in progress."""
        return call_hash(self.owner.call)

    def run(self, buffer: NDArray[Any], op: str, what: str, root: int = 0) -> None:
        """Reduce or broadcast in place.

        Args:
            buffer: (n,) array.
            op: The reduction.
            what: One of `WHAT`.
            root: A rank of the node.

        Raises:
            CollectiveError: The ranks do different things.
        """
        dtype, n, mark = buffer.dtype, buffer.size, self.mark
        if dtype.kind == "c":
            buffer, dtype, n = buffer.view(buffer.real.dtype), buffer.real.dtype, 2 * n
            mark |= 1 << 32  # twice as many real numbers are something else
        if not self.compiled:
            self._without_kernels(buffer, op, what, root, mark)
            return
        codes = dtype.itemsize, NUMBERS[dtype.num], OP_CODES[op], WHAT[what], root
        self.check(self._kernel(self.node_address, buffer.ctypes.data, n, *codes, mark))

    def compare(self, number: int) -> None:
        """Raise CollectiveError on all ranks of the node unless all make the same call.

        Args:
            number: Below 2^48; has to be the same too.
        """
        self.check(self._kernel(self.node_address, None, number, 1, 0, 0, COMPARE, 0, self.mark))

    def check(self, status: int) -> None:
        """Raise the error of a status that the kernel returned, on all ranks of the node."""
        if status == 0:
            return
        if status == 1:
            raise self._mismatch()
        raise CollectiveError(
            "another rank's memory could not be read in a large all-reduce",
            where=f"rank {self.ranks[self.rank]}",
            remedy="choose another algorithm (sync.algorithm or algorithm=...), and tell us what "
            "'mpidl doctor' says",
        )

    def _mismatch(self) -> CollectiveError:
        return disagreement(
            self.ranks, objects.allgather(self.comm, str(self.owner.call or ""), str)
        )

    def _without_kernels(
        self, buffer: NDArray[Any], op: str, what: str, root: int, mark: int
    ) -> None:
        own = buffer.size, str(buffer.dtype), mark, str(self.owner.call or "")
        calls = objects.allgather(self.comm, own, tuple[int, str, int, str])
        if any(call[:3] != calls[0][:3] for call in calls):
            raise disagreement(self.ranks, [call[3] for call in calls])
        raw, step = buffer.view(np.uint8), SLOT
        for at in range(0, raw.size, step):
            piece = raw[at : at + step]
            self._memory[self.rank][LINES : LINES + piece.size] = piece
            self.comm.Barrier()
            parts = [
                memory[LINES : LINES + piece.size].view(buffer.dtype) for memory in self._memory
            ]
            if what == "broadcast":
                piece[:] = parts[root].view(np.uint8)
            elif what == "all_reduce" or self.rank == root:
                piece[:] = np.ascontiguousarray(tree_reduce(parts, op)).view(np.uint8)
            self.comm.Barrier()

    def free(self) -> None:
        """Release the window. Collective among the ranks of the node."""
        self._memory = []
        self._window.Free()


def disagreement(ranks: Iterable[int], calls: Iterable[str]) -> CollectiveError:
    """The error for ranks that do different things; calls: what each of them does."""
    listed = "; ".join(f"rank {rank}: {call}" for rank, call in zip(ranks, calls, strict=True))
    return CollectiveError(
        f"the ranks disagree on the collective: {listed}",
        remedy="all ranks must call the same collectives in the same order, with equal lengths, "
        "dtypes, operations and roots",
        agreed=True,
    )
