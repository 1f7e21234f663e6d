"""Brings buffers to where MPI can read them.

Host memory is passed as it is. Device memory is passed as it is to a GPU-aware MPI, else staged
through pinned host memory. Staging memory comes from CuPy's pool of pinned memory: each caller has
its own for as long as it needs it, so that threads may communicate at the same time.
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

from mpidl.settings import GPU_AWARE

CHUNK = 8 << 20  # bytes of each of the two pinned buffers
# Elements of one message: MPI libraries count them in 32 bits (Open MPI 5 refuses 2^31).
MOST = 1 << 30
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
    """Whether MPI can read device memory.

    MPIDL_GPU_AWARE=1 or 0 decides; else the library is asked, and a copy is tried. The trial runs
    in a separate process: an MPI that is wrong about it crashes (mpi4py issues 36, 58, 115).
    """
    wanted = GPU_AWARE.value
    if wanted in ("0", "1"):
        return wanted == "1"
    return _claims_cuda() and _probe()


def _claims_cuda() -> bool:
    try:
        return bool(ctypes.CDLL(None).MPIX_Query_cuda_support())
    except (AttributeError, OSError):
        return False


def _probe() -> bool:
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
    """`buffer` where MPI can read it: itself, or a pinned copy that is copied back at the end.

    The device stream is synchronized before MPI may read, and before the copy returns to the pool.

    Args:
        buffer: Host or device array.
        aware: MPI can read device memory.
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
    """Do elementwise `work` on a device array chunk by chunk in host memory, in place.

    Double buffering: while one chunk is worked on, the next one comes from the device, and the
    previous one returns. One stream does all copies, so that a buffer is not refilled before it
    has been emptied.

    Args:
        buffer: (n,) device array.
        work: Called with each chunk in turn.
        chunk: Bytes of each of the two pinned buffers.
    """
    cupy = array_module(buffer)
    cupy.cuda.get_current_stream().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    step = max(1, chunk // buffer.dtype.itemsize)
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
    """Start a copy from the device; returns the event that marks its end."""
    piece.get(out=host, stream=stream, blocking=False)
    return stream.record()


def _pinned_like(buffer: Any) -> NDArray[Any]:
    """Pinned memory from CuPy's pool, which is thread-safe; it returns there when released."""
    import cupyx

    host: NDArray[Any] = cupyx.empty_pinned(buffer.shape, buffer.dtype)
    return host
