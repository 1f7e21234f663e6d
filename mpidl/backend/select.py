"""Chooses the backend: a GPU where CuPy finds one, otherwise the CPU."""

from __future__ import annotations

from functools import cache
from typing import Any

from mpidl import settings
from mpidl.backend.ops import Ops
from mpidl.errors import BackendError, notice

BACKENDS = ("auto", "numpy", "cupy")


def create_ops(name: str = "auto", local_rank: int = 0, threads: int = 1) -> Ops:
    """Create a backend.

    Args:
        name: "auto", "numpy" or "cupy"; MPIDL_BACKEND, where set, stands in for "auto".
        local_rank: Picks the GPU, modulo the number of GPUs.
        threads: For the kernels on a CPU.

    Raises:
        BackendError: "cupy" was asked for and cannot run.
    """
    if name == "auto":
        name = settings.BACKEND.value
    if name not in BACKENDS:
        raise BackendError(
            f"unknown backend {name!r}", remedy=f"choose one of {', '.join(BACKENDS)}"
        )
    problem = gpu_problem() if name != "numpy" else None
    if name == "cupy" and problem is not None:
        raise BackendError(
            f"the cupy backend was asked for, but {problem}", remedy="use backend.name = 'numpy'"
        )
    if name == "auto" and problem and "not installed" not in problem and local_rank == 0:
        notice(f"computing on the CPU: {problem}")
    if name != "numpy" and problem is None:
        from mpidl.backend.cupy_ops import CupyOps

        return CupyOps(local_rank)
    from mpidl.backend.numpy_ops import NumpyOps

    return NumpyOps(threads)


def ops_for(array: Any) -> Ops:
    """The backend of an array that comes without one: a bucket of gradients.

    It leaves the number of threads of the CPU kernels alone, since the communication thread asks
    for it while another computes. The device of the array becomes that of this thread.
    """
    if not hasattr(array, "__cuda_array_interface__"):
        return _host_ops()
    array.device.use()
    return _device_ops(int(array.device.id))


@cache
def _host_ops() -> Ops:
    from mpidl.backend.numpy_ops import NumpyOps

    return NumpyOps(threads=None)


@cache
def _device_ops(device: int) -> Ops:
    from mpidl.backend.cupy_ops import CupyOps

    return CupyOps(device)


def gpu_problem() -> str | None:
    """Why no GPU can be used here, or None."""
    try:
        import cupy
    except ImportError as error:
        return f"CuPy is not installed ({error})"
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except Exception as error:
        return f"CuPy finds no usable driver ({error})"
    return None if count else "CuPy finds no GPU"
