"""What the launcher (mpirun, srun) tells a process in its environment, before MPI is initialized."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable

from mpidl.errors import PlatformError

RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")
# In this order: an mpirun within a task of srun knows better than SLURM how many processes form one job.
SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
LOCAL_SIZE_VARIABLES = (
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
    "SLURM_STEP_TASKS_PER_NODE",
)
SRUN_SECONDS = 10


def number(names: Iterable[str], default: int) -> int:
    """The first of these environment variables that starts with digits ("2", or "2(x3)" of SLURM)."""
    found = (re.match(r"\d{1,9}", os.environ.get(name, "")) for name in names)
    return next((int(match.group()) for match in found if match), default)


def rank() -> int:
    """The rank that the launcher gave this process; 0 without a launcher."""
    return number(RANK_VARIABLES, 0)


def started() -> bool:
    """Whether an MPI launcher or srun started this process."""
    return any(name in os.environ for name in RANK_VARIABLES)


def local_size() -> int:
    """How many processes of the job the launcher started on this node; 1 without a launcher."""
    return max(1, number(LOCAL_SIZE_VARIABLES, 1))


def check(size: int, library: str) -> None:
    """Refuse N processes that each see an MPI job of one rank: they would train N times into one folder.

    size: of COMM_WORLD. library: its version, which names the MPI. Raises PlatformError.
    """
    if size == 1 and number(SIZE_VARIABLES, 1) > 1:
        raise singletons(library)


def connected(library: str) -> bool:
    """Whether the launcher offers a way to the other processes that this MPI speaks; for commands that do not start MPI."""
    spoken = (
        ("OMPI_COMM_WORLD_RANK", "PMIX_RANK")
        if "Open MPI" in library
        else ("PMI_RANK", "PMIX_RANK")
    )
    return number(SIZE_VARIABLES, 1) == 1 or any(name in os.environ for name in spoken)


def singletons(library: str) -> PlatformError:
    """The error that N processes without a connection deserve: who started them, and the command that works."""
    name, count = library.splitlines()[0].strip("\0 ,"), number(SIZE_VARIABLES, 1)
    by_srun = "SLURM_STEP_NUM_TASKS" in os.environ and "OMPI_COMM_WORLD_SIZE" not in os.environ
    return PlatformError(
        f"{'srun' if by_srun else 'the launcher'} started {count} processes, but MPI ({name}) sees only one",
        remedy=_srun_remedy(name, count)
        if by_srun
        else "use the mpirun of the same MPI library (activate the environment first; 'mpidl doctor' shows both)",
        agreed=True,  # every process finds the same
    )


def _srun_remedy(library: str, count: int) -> str:
    offered = srun_types()
    fitting = [
        kind
        for kind in (("pmix",) if "Open MPI" in library else ("pmi2", "cray_shasta", "pmix"))
        if kind in offered
    ]
    own = f"srun --mpi={fitting[0]} -n {count} mpidl ..., or " if fitting else ""
    return (
        f"{own}mpirun -n {count} mpidl ... in the batch script (see scripts/slurm/train.sbatch); srun --mpi=list offers "
        f"{', '.join(offered) or 'nothing'}; for a run of its own in each task: srun -n {count} mpirun -n 1 mpidl ..."
    )


def srun_types() -> list[str]:
    """What `srun --mpi=list` offers on this machine; empty where there is no srun or it does not answer."""
    srun = shutil.which("srun")
    if srun is None:
        return []
    try:
        done = subprocess.run(
            [srun, "--mpi=list"], capture_output=True, text=True, timeout=SRUN_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    # "MPI plugin types are..." and one type a line, or "srun: pmix" of older versions; a last line lists versions of pmix
    lines = [
        line.strip().removeprefix("srun: ") for line in (done.stdout + done.stderr).splitlines()
    ]
    return [line for line in lines if re.fullmatch(r"\w+", line)]
