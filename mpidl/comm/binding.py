"""Divides the cores of a node among its ranks and sets the BLAS threads to match, without the user's help."""

from __future__ import annotations

import os
from collections.abc import Sequence

BIND_VARIABLE = "MPIDL_BIND"


def allowed_cores() -> tuple[int, ...]:
    """The cores this process may run on, ascending; the launcher or SLURM may have narrowed them already."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


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


def bind(local_rank: int, allowed: Sequence[tuple[int, ...]]) -> int:
    """Bind this process to its share and limit BLAS threads to it; returns the number of threads.

    MPIDL_BIND=none leaves affinity alone; OMP_NUM_THREADS, where set, wins for the number of threads. Where ranks outnumber
    the cores, affinity is left to the operating system.
    """
    share = share_of(local_rank, allowed)
    crowded = sum(cores == allowed[local_rank] for cores in allowed) > len(allowed[local_rank])
    if os.environ.get(BIND_VARIABLE, "auto") != "none" and not crowded and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share)
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    threads = int(wanted) if wanted.isdigit() and int(wanted) > 0 else len(share)
    limit_blas(threads)
    return threads


def limit_blas(threads: int) -> None:
    """Let every BLAS and OpenMP pool of this process use `threads` threads."""
    import numpy  # noqa: F401  (its BLAS must be loaded before it can be limited)
    from threadpoolctl import threadpool_limits

    threadpool_limits(limits=threads)
