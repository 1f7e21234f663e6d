"""Divides the cores of a node among its ranks and sets the BLAS threads to match, without the user's help."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mpidl.comm import launcher
from mpidl.errors import PlatformError

BIND_VARIABLE = "MPIDL_BIND"


@dataclass(frozen=True)
class Cores:
    """used: how many cores a rank runs on; allotted: how many of the job's cores are its share."""

    used: int
    allotted: int

    def problem(self) -> PlatformError | None:
        """What keeps a rank from its share and what to do, if anything does."""
        if self.used >= self.allotted:
            return None
        return PlatformError(
            f"a rank may use {self.used} of the {self.allotted} cores allotted to it; the launcher has bound it to them",
            remedy="mpirun --bind-to none (mpidl divides a node's cores among its ranks); with srun, --cpus-per-task=N",
        )


def allowed_cores() -> tuple[int, ...]:
    """The cores this process may run on, neighbors together; the launcher or SLURM may have narrowed them already."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0), key=_place))
    return tuple(range(os.cpu_count() or 1))


@cache
def _place(core: int) -> tuple[int, int, int]:
    """Socket, physical core and number: Linux often numbers all first hardware threads before all second ones."""
    topology = Path(f"/sys/devices/system/cpu/cpu{core}/topology")
    try:
        socket, physical = (
            int((topology / name).read_text()) for name in ("physical_package_id", "core_id")
        )
    except (OSError, ValueError):
        return 0, core, core
    return socket, physical, core


def share_of(local_rank: int, allowed: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The cores for `local_rank`, given every local rank's allowed cores.

    Ranks with the same allowed set split it into equal contiguous parts; with more ranks than cores they take turns.
    """
    mine = allowed[local_rank]
    rivals = [rank for rank, cores in enumerate(allowed) if cores == mine]
    place, count = rivals.index(local_rank), len(rivals)
    if count > len(mine):
        return (mine[place % len(mine)],)
    return mine[place * len(mine) // count : (place + 1) * len(mine) // count]


def slurm_cores(local_size: int) -> int | None:
    """How many cores SLURM has allotted to each of a node's ranks; None outside SLURM."""
    on_node = launcher.number(["SLURM_CPUS_ON_NODE"], 0)
    return launcher.number(["SLURM_CPUS_PER_TASK"], on_node // local_size) or None


def allotted_cores(local_size: int, allowed: int) -> int:
    """The share of a rank: what SLURM says, else an equal part of the cores that the launcher itself may use.

    local_size: ranks of this node. allowed: how many cores this process may run on, where nobody says more.
    """
    slurm = slurm_cores(local_size)
    if slurm is not None:
        return slurm
    if launcher.started() and hasattr(os, "sched_getaffinity"):
        with suppress(OSError):  # a launcher of another user cannot be asked
            return max(1, len(os.sched_getaffinity(os.getppid())) // local_size)
    return allowed


def bind(local_rank: int, allowed: Sequence[tuple[int, ...]]) -> tuple[Cores, int]:
    """Bind all threads of this process to its share and limit BLAS to it; returns the cores and the number of BLAS threads.

    MPIDL_BIND=none leaves affinity alone; OMP_NUM_THREADS, where set, wins for the number of threads. Affinity is also left to
    the operating system where ranks outnumber the cores, and where this process may use more cores than SLURM has allotted to
    it: SLURM then does not say which ones other jobs use.
    """
    share = share_of(local_rank, allowed)
    local_size = max(len(allowed), launcher.local_size())  # `allowed` may be of some ranks only
    slurm = slurm_cores(local_size) or len(share)
    crowded = sum(cores == allowed[local_rank] for cores in allowed) > len(allowed[local_rank])
    if os.environ.get(BIND_VARIABLE, "auto") != "none" and not crowded and len(share) <= slurm:
        _set_affinity(share)
    cores = Cores(min(len(share), slurm), allotted_cores(local_size, len(share)))
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    threads = int(wanted) if wanted.isdigit() and int(wanted) > 0 else cores.used
    limit_blas(threads)
    return cores, threads


def _set_affinity(share: tuple[int, ...]) -> None:
    """For all threads: those of a BLAS exist since it was loaded and do not follow the main thread."""
    if not hasattr(os, "sched_setaffinity"):
        return
    os.sched_setaffinity(0, share)
    for task in Path("/proc/self/task").glob("*"):
        with suppress(OSError):  # a thread may end meanwhile
            os.sched_setaffinity(int(task.name), share)


def limit_blas(threads: int) -> None:
    """Let every BLAS and OpenMP pool of this process use `threads` threads."""
    import numpy  # noqa: F401  (its BLAS must be loaded before it can be limited)
    from threadpoolctl import threadpool_limits

    threadpool_limits(limits=threads)
