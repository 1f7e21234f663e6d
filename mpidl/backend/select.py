"""Chooses the backend: a GPU where CuPy finds one, otherwise the CPU; MPIDL_BACKEND or the configuration overrides."""

from __future__ import annotations

import os

from mpidl.backend.ops import Ops
from mpidl.errors import BackendError, notice

BACKENDS = ("auto", "numpy", "cupy")


def create_ops(name: str = "auto", local_rank: int = 0, threads: int = 1) -> Ops:
    """The backend `name` ("auto", "numpy" or "cupy"); MPIDL_BACKEND, where set, stands in for "auto".

    local_rank: picks the GPU, modulo the number of GPUs. threads: for the kernels on a CPU.
    Raises BackendError if "cupy" was asked for and cannot run.
    """
    if name == "auto":
        name = os.environ.get("MPIDL_BACKEND", "auto")
    if name not in BACKENDS:
        raise BackendError(
            f"unknown backend {name!r}", remedy=f"choose one of {', '.join(BACKENDS)}"
        )
    problem = gpu_problem() if name != "numpy" else None
    if name == "cupy" and problem is not None:
        raise BackendError(
            f"the cupy backend was asked for, but {problem}", remedy="use backend.name = 'numpy'"
        )
    if (
        name == "auto"
        and problem is not None
        and "not installed" not in problem
        and local_rank == 0
    ):
        notice(f"computing on the CPU: {problem}")
    if name != "numpy" and problem is None:
        from mpidl.backend.cupy_ops import CupyOps

        return CupyOps(local_rank)
    from mpidl.backend.numpy_ops import NumpyOps

    return NumpyOps(threads)


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
