"""The collective operations that the rest of mpidl calls."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpidl.collectives.execute import execute
from mpidl.collectives.native import native
from mpidl.collectives.rabenseifner import rabenseifner
from mpidl.collectives.ring import ring
from mpidl.collectives.schedule import Algorithm
from mpidl.comm.transport import host_view
from mpidl.errors import CollectiveError

ALL_REDUCE: dict[str, Algorithm] = {"ring": ring, "rabenseifner": rabenseifner, "native": native}
_DTYPES = frozenset("bBhHiIlLqQfdFD")


def all_reduce(buffer: Any, *, comm: Any, algorithm: str = "ring") -> None:
    """Sum `buffer` over all ranks of `comm`, in place; afterwards all ranks hold the same bits.

    buffer: (n,) array, C-contiguous and writable, in host or device memory; the same length and dtype on every rank; any
    real or complex dtype that MPI can send (not float16). algorithm: "ring", "rabenseifner" or "native".
    Cost: 2 (P - 1) / P * n elements sent per rank, in 2 (P - 1) rounds (ring) or 2 log2 P (rabenseifner).
    Raises CollectiveError for a buffer that cannot be reduced in place or an unknown algorithm.
    """
    if algorithm not in ALL_REDUCE:
        raise CollectiveError(f"unknown all-reduce algorithm {algorithm!r}", remedy=f"choose one of {sorted(ALL_REDUCE)}")
    if buffer.ndim != 1 or not buffer.flags.c_contiguous:
        raise CollectiveError(f"all_reduce needs a 1-D contiguous array, got shape {buffer.shape}", remedy="reshape(-1)")
    if np.dtype(buffer.dtype).char not in _DTYPES:
        raise CollectiveError(f"all_reduce cannot send dtype {buffer.dtype}", remedy="convert to float32 first")
    size = comm.Get_size()
    if size == 1 or not buffer.size:
        return
    with host_view(buffer) as host:
        if not host.flags.writeable:
            raise CollectiveError("all_reduce works in place, and this array is read-only", remedy="pass a copy")
        execute(ALL_REDUCE[algorithm](comm.Get_rank(), size, host.size), host, comm)
