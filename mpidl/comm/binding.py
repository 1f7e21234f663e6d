"""Divides the cores of a node among its ranks, and sets the BLAS threads to match."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mpidl.comm import launcher
from mpidl.errors import PlatformError
from mpidl.settings import BIND


@dataclass(frozen=True)
class Cores:
    """The cores of a rank.

    Attributes:
        used: How many cores it runs on.
        allotted: How many of the job's cores are its share.
    """

    used: int
    allotted: int

    def problem(self) -> PlatformError | None:
        """What keeps a rank from its share and how to mend it; None if nothing does."""
        if self.used >= self.allotted:
            return None
        return PlatformError(
            f"a rank may use {self.used} of the {self.allotted} cores allotted to it; "
            "the launcher has bound it to them",
            remedy="mpirun --bind-to none (mpidl divides a node's cores among its ranks); "
            "with srun, --cpus-per-task=N",
        )


def allowed_cores() -> tuple[int, ...]:
    """The cores in the affinity mask of this process, ordered by socket and physical core."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0), key=_place))
    return tuple(range(os.cpu_count() or 1))


@cache
def _place(core: int) -> tuple[int, int, int]:
    """Socket, physical core, number.

    Linux often numbers the first hardware threads of all cores before all second ones.
    """
    topology = Path(f"/sys/devices/system/cpu/cpu{core}/topology")
    try:
        socket = int((topology / "physical_package_id").read_text())
        physical = int((topology / "core_id").read_text())
    except (OSError, ValueError):
        return 0, core, core
    return socket, physical, core


def divide_cores(local_rank: int, allowed: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The cores for one rank of a node.

    Ranks with the same affinity mask split it into equal contiguous blocks; with more ranks than
    cores they are assigned round-robin.

    Args:
        local_rank: The rank within the node.
        allowed: The allowed cores of every local rank.
    """
    mine = allowed[local_rank]
    sharing = [rank for rank, cores in enumerate(allowed) if cores == mine]
    index = sharing.index(local_rank)
    count = len(sharing)
    if count > len(mine):
        return (mine[index % len(mine)],)
    return mine[index * len(mine) // count : (index + 1) * len(mine) // count]


def slurm_cores(local_size: int) -> int | None:
    """How many cores SLURM has allotted to each of a node's ranks; None outside SLURM."""
    on_node = launcher.read_count(["SLURM_CPUS_ON_NODE"], 0)
    return launcher.read_count(["SLURM_CPUS_PER_TASK"], on_node // local_size) or None


def allotted_cores(local_size: int, allowed: int) -> int:
    """The share of a rank: by SLURM, else an equal part of the launcher's own affinity mask.

    Args:
        local_size: Ranks of this node.
        allowed: Cores that this process may run on: the answer where neither says more.
    """
    slurm = slurm_cores(local_size)
    if slurm is not None:
        return slurm
    if launcher.is_launched() and hasattr(os, "sched_getaffinity"):
        with suppress(OSError):  # a launcher of another user cannot be asked
            return max(1, len(os.sched_getaffinity(os.getppid())) // local_size)
    return allowed


def bind(local_rank: int, allowed: Sequence[tuple[int, ...]]) -> tuple[Cores, int]:
    """Bind all threads of this process to its share of cores and limit BLAS to it.

    MPIDL_BIND=none leaves affinity alone. It is also left to the operating system where ranks
    outnumber the cores, and where this process may use more cores than SLURM has allotted to it:
    SLURM then does not say which ones other jobs use.

    Args:
        local_rank: The rank within the node.
        allowed: The allowed cores of every local rank.

    Returns:
        The cores, and the number of BLAS threads: OMP_NUM_THREADS, where set.
    """
    share = divide_cores(local_rank, allowed)
    local_size = max(len(allowed), launcher.local_size())  # `allowed` may be of some ranks only
    slurm = slurm_cores(local_size) or len(share)
    sharing = sum(cores == allowed[local_rank] for cores in allowed)
    oversubscribed = sharing > len(allowed[local_rank])
    if BIND.value != "none" and not oversubscribed and len(share) <= slurm:
        _set_affinity(share)
    cores = Cores(min(len(share), slurm), allotted_cores(local_size, len(share)))
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    threads = int(wanted) if wanted.isdigit() and int(wanted) > 0 else cores.used
    limit_blas_threads(threads)
    return cores, threads


def _set_affinity(share: tuple[int, ...]) -> None:
    """Of all threads: a BLAS starts its own when it is loaded, and they keep the old mask."""
    if not hasattr(os, "sched_setaffinity"):
        return
    os.sched_setaffinity(0, share)
    for task in Path("/proc/self/task").glob("*"):
        with suppress(OSError):  # a thread may end meanwhile
            os.sched_setaffinity(int(task.name), share)


def limit_blas_threads(threads: int) -> None:
    """Limit every BLAS and OpenMP pool of this process to `threads` threads."""
    import numpy  # noqa: F401  (its BLAS must be loaded before it can be limited)
    from threadpoolctl import threadpool_limits

    threadpool_limits(limits=threads)
