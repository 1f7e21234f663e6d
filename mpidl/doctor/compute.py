"""What computes: BLAS, C kernels, GPUs, and the cores of a rank."""

from __future__ import annotations

import os

from mpidl.backend import kernels
from mpidl.backend.select import gpu_problem
from mpidl.comm import binding, launcher
from mpidl.doctor.finding import Finding


def check_blas() -> list[Finding]:
    """The BLAS of NumPy."""
    import numpy
    from threadpoolctl import threadpool_info

    findings = []
    for pool in threadpool_info():
        if pool["user_api"] != "blas":
            continue
        value = (
            f"{pool['internal_api']} {pool.get('version', '')}, "
            f"kernel {pool.get('architecture', '?')}, NumPy {numpy.__version__}"
        )
        forced = os.environ.get("OPENBLAS_CORETYPE")
        advice = f"OPENBLAS_CORETYPE={forced} forces this kernel: unset it to let OpenBLAS choose"
        findings.append(
            Finding("BLAS", value, "note", advice) if forced else Finding("BLAS", value)
        )
    return findings


def check_kernels() -> list[Finding]:
    """The compiled C kernels."""
    loaded = kernels.load_library()
    if loaded:
        value = f"level {loaded[1]} (of {', '.join(kernels.supported_levels())})"
        return [Finding("C kernels", value)]
    advice = "install a C compiler and reinstall mpidl: convolutions are several times faster"
    return [Finding("C kernels", "none could be loaded, pure NumPy is used", "note", advice)]


def check_gpu() -> list[Finding]:
    """The GPUs that CuPy finds."""
    problem = gpu_problem()
    if problem is not None:
        advice = "on a GPU node: pip install 'mpidl[cuda12]'; on CPU nodes nothing to do"
        return [Finding("GPU", f"none in use: {problem}", "note", advice)]
    import cupy

    runtime = cupy.cuda.runtime
    count = runtime.getDeviceCount()
    names = [runtime.getDeviceProperties(index)["name"].decode() for index in range(count)]
    return [Finding("GPU", ", ".join(names))]


def check_threads() -> list[Finding]:
    """The cores of this process, and the threads that a rank would use."""
    allowed = len(binding.allowed_cores())
    cores = binding.Cores(allowed, binding.allotted_cores(launcher.local_size(), allowed))
    value = f"{allowed} core(s) allowed of {os.cpu_count()}; each rank of a node gets its share"
    set_by_user = os.environ.get("OMP_NUM_THREADS")
    if set_by_user:
        value += f"; OMP_NUM_THREADS={set_by_user} sets the threads per rank"
    if problem := cores.problem():
        return [Finding("threads", f"{value}; {problem.what}", "note", problem.remedy)]
    return [Finding("threads", value)]
