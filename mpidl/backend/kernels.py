"""Finds the kernel sources and the compiled C library that fits this processor."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from pathlib import Path

from mpidl import settings
from mpidl.backend.headers import kernel_folder, shared_headers

# Best first; the flags (as the Linux kernel names them) that tell each level of the x86-64 psABI
# from the one below it.
LEVELS: dict[str, frozenset[str]] = {
    "v4": frozenset(
        {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "fma", "bmi2"}
    ),
    "v3": frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"}),
    "v2": frozenset({"sse4_2", "ssse3", "popcnt", "cx16"}),
    "generic": frozenset(),
}


def cpu_flags() -> frozenset[str]:
    """The instruction-set flags of this processor; empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = (line.split(":", 1)[1].split() for line in lines if line.startswith("flags"))
    return frozenset(next(flags, []))


def supported_levels() -> list[str]:
    """Built levels that this processor can run, best first.

    MPIDL_CPU_LEVEL limits them to one, or to none.
    """
    wanted = settings.CPU_LEVEL.value
    flags = cpu_flags()
    x86 = platform.machine() in ("x86_64", "AMD64")
    return [
        level
        for level, needed in LEVELS.items()
        if needed <= flags
        and (level == "generic") != x86
        and library_path(level).exists()
        and wanted in ("", level)
    ]


def library_path(level: str) -> Path:
    """Where the library of `level` lies once it has been built."""
    return kernel_folder() / f"libmpidl_cpu_{level}.so"


@cache
def load_library() -> tuple[ctypes.CDLL, str] | None:
    """The best C library for this processor and its level; None where none was built or can run.

    OpenMP is told to sleep where its threads wait, unless the user says otherwise: on a node shared
    with other ranks spinning takes the cores that they need.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for level in supported_levels():
        try:
            return ctypes.CDLL(str(library_path(level))), level
        except OSError:
            continue
    return None


def cuda_source(family: str) -> str:
    """The CUDA C++ text of one family of kernels, with the headers in front.

    In front and not by #include, since CuPy's cache does not notice that an included header has
    changed.
    """
    folder = kernel_folder() / "cuda"
    parts = (folder / "common.cuh", folder / f"{family}.cu")
    return shared_headers() + "".join(part.read_text() for part in parts)


def cuda_families() -> list[str]:
    """The names of all CUDA sources."""
    return sorted(path.stem for path in (kernel_folder() / "cuda").glob("*.cu"))
