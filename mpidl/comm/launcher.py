"""What the launcher (mpirun, srun) tells a process in its environment before MPI starts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable

from mpidl.errors import PlatformError

RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")
# In this order: an mpirun within a task of srun knows better than SLURM how many processes form
# one job.
SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
LOCAL_SIZE_VARIABLES = (
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
    "SLURM_STEP_TASKS_PER_NODE",
)
SRUN_TIMEOUT = 10  # seconds


def read_count(names: Iterable[str], default: int) -> int:
    """The leading digits ("2", or "2(x3)" of SLURM) of the first variable that has any."""
    found = (re.match(r"\d{1,9}", os.environ.get(name, "")) for name in names)
    return next((int(match.group()) for match in found if match), default)


def rank() -> int:
    """The rank that the launcher gave this process; 0 without a launcher."""
    return read_count(RANK_VARIABLES, 0)


def is_launched() -> bool:
    """Whether an MPI launcher or srun started this process."""
    return any(name in os.environ for name in RANK_VARIABLES)


def size() -> int:
    """How many processes of the job the launcher started; 1 without a launcher."""
    return max(1, read_count(SIZE_VARIABLES, 1))


def local_size() -> int:
    """How many processes of the job the launcher started on this node; 1 without a launcher."""
    return max(1, read_count(LOCAL_SIZE_VARIABLES, 1))


def check(size: int, library: str) -> None:
    """Refuse N processes that each see an MPI job of one rank: all would write to one folder.

    Args:
        size: Of COMM_WORLD.
        library: Version string of the MPI library.

    Raises:
        PlatformError: The launcher started more than one process, and MPI sees one.
    """
    if size == 1 and read_count(SIZE_VARIABLES, 1) > 1:
        raise singletons_error(library)


def can_connect(library: str) -> bool:
    """Whether this MPI speaks a process-management interface that the launcher offers.

    For commands that do not start MPI.
    """
    spoken = (
        ("OMPI_COMM_WORLD_RANK", "PMIX_RANK")
        if "Open MPI" in library
        else ("PMI_RANK", "PMIX_RANK")
    )
    return read_count(SIZE_VARIABLES, 1) == 1 or any(name in os.environ for name in spoken)


def singletons_error(library: str) -> PlatformError:
    """The error for N processes that are no job: who started them, and the command that works."""
    name = library.splitlines()[0].strip("\0 ,")
    count = read_count(SIZE_VARIABLES, 1)
    by_srun = "SLURM_STEP_NUM_TASKS" in os.environ and "OMPI_COMM_WORLD_SIZE" not in os.environ
    starter = "srun" if by_srun else "the launcher"
    remedy = (
        "use the mpirun of the same MPI library "
        "(activate the environment first; 'mpidl doctor' shows both)"
    )
    return PlatformError(
        f"{starter} started {count} processes, but MPI ({name}) sees only one",
        remedy=_srun_remedy(name, count) if by_srun else remedy,
        agreed=True,  # every process finds the same
    )


def _srun_remedy(library: str, count: int) -> str:
    offered = srun_types()
    usable = ("pmix",) if "Open MPI" in library else ("pmi2", "cray_shasta", "pmix")
    kind = next((kind for kind in usable if kind in offered), None)
    direct = f"srun --mpi={kind} -n {count} mpidl ..., or " if kind else ""
    return (
        f"{direct}mpirun -n {count} mpidl ... in the batch script "
        "(see scripts/slurm/train.sbatch); "
        f"srun --mpi=list offers {', '.join(offered) or 'nothing'}; "
        f"for a separate run in each task: srun -n {count} mpirun -n 1 mpidl ..."
    )


def srun_types() -> list[str]:
    """What `srun --mpi=list` offers; empty where there is no srun or it does not answer."""
    srun = shutil.which("srun")
    if srun is None:
        return []
    try:
        done = subprocess.run(
            [srun, "--mpi=list"], capture_output=True, text=True, timeout=SRUN_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    # "MPI plugin types are..." and one type a line, or "srun: pmix" of older versions; a last line
    # lists versions of pmix
    listed = (done.stdout + done.stderr).splitlines()
    lines = [line.strip().removeprefix("srun: ") for line in listed]
    return [line for line in lines if re.fullmatch(r"\w+", line)]
