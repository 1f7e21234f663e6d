"""Brings buffers to where MPI can read them: host memory as it is, device memory through pinned host staging, or, with an MPI
that is GPU-aware, device memory itself.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

GPU_AWARE_VARIABLE = "MPIDL_GPU_AWARE"
CHUNK = 8 << 20  # bytes of each of the two pinned buffers
MOST = (
    1 << 30
)  # elements of one message: MPI libraries count them in 32 bits (Open MPI 5 refuses 2^31)
_PROBE = """
import cupy
from mpi4py import MPI
a, b = cupy.arange(4096, dtype="f4"), cupy.zeros(4096, dtype="f4")
cupy.cuda.get_current_stream().synchronize()
MPI.COMM_SELF.Sendrecv(a, 0, 1, b, 0, 1)
assert bool((a == b).all())
"""


def is_device(buffer: Any) -> bool:
    """Whether `buffer` lies in the memory of a GPU."""
    return hasattr(buffer, "__cuda_array_interface__")


def array_module(buffer: Any) -> Any:
    """numpy, or cupy for a device array."""
    if not is_device(buffer):
        return np
    import cupy

    return cupy


@cache
def gpu_aware() -> bool:
    """Whether MPI can read device memory. MPIDL_GPU_AWARE=1 or 0 says so; else the library is asked, and a copy is tried.

    The trial runs in a process of its own: an MPI that only believes to be GPU-aware dies of it (mpi4py issues 36, 58, 115).
    """
    wanted = os.environ.get(GPU_AWARE_VARIABLE, "")
    if wanted in ("0", "1"):
        return wanted == "1"
    return _claims_cuda() and _trial()


def _claims_cuda() -> bool:
    try:
        return bool(ctypes.CDLL(None).MPIX_Query_cuda_support())
    except (AttributeError, OSError):
        return False


def _trial() -> bool:
    launched = ("OMPI_", "PMI", "PRTE", "SLURM")
    alone = {key: value for key, value in os.environ.items() if not key.startswith(launched)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], env=alone, capture_output=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@contextmanager
def host_view(buffer: Any, aware: bool = False) -> Iterator[Any]:
    """`buffer` where MPI can read it: itself in host memory, or if `aware`; else a pinned copy, copied back at the end.

    The device stream is synchronized before MPI may read, and before the copy is given back to CuPy's pool of pinned memory.
    """
    if not is_device(buffer):
        yield buffer
        return
    if aware:
        array_module(buffer).cuda.get_current_stream().synchronize()
        yield buffer
        return
    host = _pinned_like(buffer)
    buffer.get(out=host)
    yield host
    buffer.set(host)
    array_module(buffer).cuda.get_current_stream().synchronize()


def in_chunks(buffer: Any, work: Callable[[NDArray[Any]], None], chunk: int = CHUNK) -> None:
    """Do `work` on a device array (n,) piece by piece in host memory, in place; for work that treats elements alike.

    Two pinned buffers of `chunk` bytes take turns: while one is worked on, the next piece comes from the device, and the piece
    before it goes back. One stream does all copies, so that a buffer is not filled again before it has been emptied.
    """
    cupy = array_module(buffer)
    cupy.cuda.get_current_stream().synchronize()
    stream, step = cupy.cuda.Stream(non_blocking=True), max(1, chunk // buffer.dtype.itemsize)
    pieces = [buffer[at : at + step] for at in range(0, buffer.size, step)]
    turns = _pinned_like(buffer[:step]), _pinned_like(buffer[:step])
    hosts = [turn[: piece.size] for turn, piece in zip(cycle(turns), pieces, strict=False)]
    try:
        arrived = [_fetch(pieces[0], hosts[0], stream)]
        for index, piece in enumerate(pieces):
            if index + 1 < len(pieces):
                arrived.append(_fetch(pieces[index + 1], hosts[index + 1], stream))
            arrived[index].synchronize()
            work(hosts[index])
            piece.set(hosts[index], stream=stream)
    finally:
        stream.synchronize()


def _fetch(piece: Any, host: NDArray[Any], stream: Any) -> Any:
    """Start a copy from the device; returns the event of its end."""
    piece.get(out=host, stream=stream, blocking=False)
    return stream.record()


def _pinned_like(buffer: Any) -> NDArray[Any]:
    """Pinned memory of this caller alone, from CuPy's pool, which threads may use at once; it returns there when released."""
    import cupyx

    host: NDArray[Any] = cupyx.empty_pinned(buffer.shape, buffer.dtype)
    return host
