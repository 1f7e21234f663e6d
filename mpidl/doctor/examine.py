"""All checks in the order in which to read them. MPI is initialized in a child process only."""

from __future__ import annotations

import platform

import mpidl
from mpidl.doctor.compute import check_blas, check_gpu, check_kernels, check_threads
from mpidl.doctor.extras import check_extras
from mpidl.doctor.finding import Finding
from mpidl.doctor.libraries import check_hdf5, check_launcher, check_mpi
from mpidl.doctor.probe import run_probe


def examine() -> list[Finding]:
    """Check this machine."""
    probe = run_probe()
    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    return [
        Finding("mpidl", f"{mpidl.__version__}, {system}"),
        *check_mpi(probe),
        *check_hdf5(probe),
        *check_blas(),
        *check_kernels(),
        *check_gpu(),
        *check_threads(),
        *check_extras(),
        *check_launcher(probe.get("version", "")),
    ]
