"""`python -m mpidl.doctor.probe`: initializes MPI, imports h5py, and prints what they are as JSON.

A process of its own: an MPI that crashes or hangs must not take the doctor with it.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mpidl.comm import mpi

PROBE_SECONDS = 60
MARK = "PROBE"  # before the JSON: MPI libraries print to stdout too


def run_probe() -> dict[str, Any]:
    """Run this module in a child process.

    Returns:
        What `examine_process` found there; or {"error": why it failed}.
    """
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("OMPI_COMM", "PMIX_", "PMI_", "PRTE_"))
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"initializing MPI did not finish within {PROBE_SECONDS} s"}
    line = next((line for line in done.stdout.splitlines() if line.startswith(MARK)), None)
    if line is None:
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()
        return {"error": next((text for text in reversed(last) if text.strip()), "no output")}
    found: dict[str, Any] = json.loads(line.removeprefix(MARK))
    return found


def examine_process() -> dict[str, Any]:
    """Initialize MPI, import h5py, and describe both.

    Returns:
        version, vendor: of the MPI library; thread: its level; ft: whether it is fault-tolerant;
        gpu: whether it reads device memory; h5py: versions, and whether it is parallel, or
        h5py_error; libmpi: the MPI libraries in this process.
    """
    MPI = mpi.initialize()
    levels = {
        MPI.THREAD_SINGLE: "single",
        MPI.THREAD_FUNNELED: "funneled",
        MPI.THREAD_SERIALIZED: "serialized",
        MPI.THREAD_MULTIPLE: "multiple",
    }
    name, version = MPI.get_vendor()
    found: dict[str, Any] = {
        "version": MPI.Get_library_version().split("\n")[0].strip("\0 ,"),
        "vendor": f"{name} {'.'.join(map(str, version))}",
        "thread": levels[MPI.Query_thread()],
        "ft": _is_fault_tolerant(MPI),
        "gpu": _is_gpu_aware(),
    }
    try:
        import h5py

        parallel = bool(h5py.get_config().mpi)
        found["h5py"] = [h5py.version.version, h5py.version.hdf5_version, parallel]
    except ImportError as error:
        found["h5py_error"] = str(error)
    return found | {"libmpi": mapped_libraries(r"/libmpi\.so|/libmpich?\.so")}


def mapped_libraries(pattern: str) -> list[str]:
    """Paths of the libraries in this process that match a regular expression."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    return sorted({line.split()[-1] for line in lines if re.search(pattern, line)})


def _is_gpu_aware() -> bool:
    """Ask the extension of Open MPI, in this process or in the library that Python has loaded."""
    for path in (None, *mapped_libraries(r"/libmpi\.so")):
        try:
            return bool(ctypes.CDLL(path).MPIX_Query_cuda_support())
        except (OSError, AttributeError):
            continue
    return False


def _is_fault_tolerant(MPI: Any) -> bool:
    """Whether the functions of ULFM work."""
    try:
        comm = MPI.COMM_SELF.Dup()
        comm.Is_revoked()
        comm.Free()
    except (NotImplementedError, AttributeError, MPI.Exception):
        return False
    return True


if __name__ == "__main__":
    print(MARK + json.dumps(examine_process()))
