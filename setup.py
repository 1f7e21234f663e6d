"""Builds the C kernels of kernels/cpu as shared libraries, one for each instruction-set level.

The libraries do not depend on Python; mpidl.backend.kernels loads the best one for the processor.
Where no compiler is found the package installs without them and mpidl runs on NumPy alone.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
SOURCES = sorted(str(p.relative_to(HERE)) for p in (HERE / "kernels" / "cpu").glob("*.c"))
TEMPLATE = "kernels/cpu/kernels.c"
FAMILIES = sorted(
    p.name for p in (HERE / "kernels" / "cpu").glob("*_impl.h") if p.name != "math_impl.h"
)
X86_LEVELS = {
    "v2": ["-march=x86-64-v2"],
    "v3": ["-march=x86-64-v3"],
    "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
}
LEVELS = X86_LEVELS if platform.machine() in ("x86_64", "AMD64") else {"generic": []}
FLAGS = [
    "-std=gnu11",
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-falign-functions=64",  # else the speed of a tile depends on what is linked before it
    "-Wall",
]


def numpy_headers() -> list[str]:
    """Where NumPy's C headers lie; nowhere without NumPy, and then there is no compiled binder."""
    try:
        import numpy
    except ImportError:
        return []
    return [numpy.get_include()]


def build_library(target: Path, flags: list[str]) -> None:
    """Compile every family of kernels and every other source on its own, and link them.

    A translation unit of all families is inlined less: its matrix products took 3 to 9 % longer.
    """
    jobs = [(TEMPLATE, [f'-DFAMILY="{family}"'], Path(family).stem) for family in FAMILIES]
    jobs += [(source, [], Path(source).stem) for source in SOURCES if source != TEMPLATE]
    with tempfile.TemporaryDirectory() as folder:

        def compile_one(job: tuple[str, list[str], str]) -> str:
            source, defines, name = job
            made = f"{folder}/{name}.o"
            run("cc", *flags, *defines, "-c", source, "-o", made)
            return made

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, jobs))
        run("cc", *flags, "-shared", "-o", str(target), *objects, "-lm")


def run(*command: str) -> None:
    subprocess.run(command, check=True, cwd=HERE, capture_output=True, text=True)


class BuildKernels(build_ext):
    """Compile the sources into one library per level, beside the sources' package."""

    def build_extension(self, ext: Extension) -> None:
        if not ext.name.rsplit(".", 1)[1].startswith("lib"):
            # Optional: without Python.h mpidl calls the kernels through ctypes
            super().build_extension(ext)
            return
        level = ext.name.rsplit("_", 1)[1]
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        detail = ""
        # A compiler without OpenMP still gives kernels, for one thread
        for threads in (["-fopenmp"], []):
            try:
                build_library(target, [*FLAGS, *threads, *LEVELS[level]])
                return
            except (OSError, subprocess.CalledProcessError) as error:
                detail = getattr(error, "stderr", "") or str(error)
        print(
            f"mpidl: no C kernels of level {level}, NumPy will be used instead: {detail}",
            file=sys.stderr,
        )

    def get_ext_filename(self, fullname: str) -> str:
        if not fullname.rsplit(".", 1)[-1].startswith("lib"):
            return str(super().get_ext_filename(fullname))
        return fullname.replace(".", "/") + ".so"

    def copy_extensions_to_source(self) -> None:
        for ext in self.extensions:
            built = Path(self.build_lib) / self.get_ext_filename(ext.name)
            wanted = HERE / "kernels" / built.name
            # Renamed: a job that runs keeps its library; writing into that would crash it
            if built.exists():
                partial = wanted.with_suffix(".partial")
                partial.write_bytes(built.read_bytes())
                partial.replace(wanted)


setup(
    # kernels/ is the package mpidl._kernels, which no search below mpidl/ can find
    packages=find_packages(include=["mpidl", "mpidl.*"], exclude=["mpidl._kernels"])
    + ["mpidl._kernels"],
    ext_modules=[
        Extension(f"mpidl._kernels.libmpidl_cpu_{level}", SOURCES, optional=True)
        for level in LEVELS
    ]
    + [
        Extension("mpidl._kernels.fast_shared", ["kernels/python/fast_shared.c"], optional=True),
        Extension(
            "mpidl._kernels.bind",
            ["kernels/python/bind.c"],
            include_dirs=numpy_headers(),
            optional=True,
        ),
        # without OpenSSL's headers the library cryptography seals messages instead
        Extension(
            "mpidl._kernels.seal", ["kernels/python/seal.c"], libraries=["crypto"], optional=True
        ),
    ],
    cmdclass={"build_ext": BuildKernels},
)
