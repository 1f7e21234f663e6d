"""Compares the all-reduce algorithms with each other and with the MPI library, interleaved.

Bandwidths by the convention of NCCL-tests: algorithm bandwidth is bytes / time; bus bandwidth is
that times 2 (P - 1) / P, the least that each rank has to send.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.collectives import all_reduce
from mpidl.collectives.algorithms import ALL_REDUCE
from mpidl.collectives.group import Group
from mpidl.collectives.schedule import all_reduce_bytes
from mpidl.comm import mpi
from mpidl.comm.protected import plain
from mpidl.errors import ConfigError, nearest
from mpidl.performance.measure import Call, time_interleaved, usable_algorithms

LIBRARY = "native"  # the bare call of mpi4py, without the algorithm of that name
# a buffer of float32 -> a call that all-reduces it
Contender = Callable[[NDArray[np.float32]], Call]
Row = dict[str, Any]


def check_names(names: Iterable[str], where: str = "") -> None:
    """Refuse names that are no algorithm.

    Raises:
        ConfigError: There is no such algorithm.
    """
    known = ("auto", *ALL_REDUCE)
    for name in names:
        if name not in known:
            what = f"unknown algorithm {name!r}"
            raise ConfigError(what, where=where, remedy=nearest(name, known))


def message_sizes(smallest: int, largest: int, factor: int) -> Iterator[int]:
    """Message sizes in bytes, ascending."""
    while smallest <= largest:
        yield smallest
        smallest *= factor


def make_contenders(group: Group, names: Iterable[str] = ()) -> dict[str, Contender]:
    """What is compared, by name.

    Args:
        group: The ranks.
        names: Of algorithms; without any, "auto" and all that these ranks can use.
    """
    chosen = tuple(names) or ("auto", *usable_algorithms(group))
    return {
        name: partial(_library_call, group) if name == LIBRARY else partial(_call, group, name)
        for name in chosen
    }


def _call(group: Group, name: str, buffer: NDArray[np.float32]) -> Call:
    return lambda: all_reduce(buffer, comm=group, algorithm=name)


def _library_call(group: Group, buffer: NDArray[np.float32]) -> Call:
    MPI = mpi.load()
    comm = plain(group.comm, "the comparison with MPI's own", "turn security.channel off")
    bare = MPI.Intracomm(comm)  # does not inform the watchdog
    return lambda: bare.Allreduce(MPI.IN_PLACE, buffer, op=MPI.SUM)


def compare(
    group: Group,
    contenders: Mapping[str, Contender],
    sizes: Iterable[int],
    *,
    seconds: float = 1.0,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Time all contenders at each size. Collective.

    Args:
        group: The ranks.
        contenders: As from `make_contenders`, and those of other libraries.
        sizes: Bytes of the messages.
        seconds: Measuring time for each size.
        say: Receives the table, line by line.

    Returns:
        One row for each size and contender: bytes, algorithm, median_us (of the slowest rank),
        algorithm_gb_s, bus_gb_s.
    """
    ranks = f"{group.size} ranks on {group.node_count} node(s)"
    say(f"all-reduce, float32, {ranks}: median us of the slowest rank")
    columns = " ".join(f"{name:>13}" for name in contenders)
    say(f"{'bytes':>10} {columns}   best GB/s (algorithm, bus)")
    results: list[Row] = []
    for nbytes in sizes:
        rows = _compare_at(group, contenders, nbytes, seconds)
        best = min(rows, key=lambda row: float(row["median_us"]))
        times = " ".join(f"{row['median_us']:>13.1f}" for row in rows)
        rates = f"{best['algorithm_gb_s']:.3f}, {best['bus_gb_s']:.3f} ({best['algorithm']})"
        say(f"{nbytes:>10} {times}   {rates}")
        results += rows
    return results


def _compare_at(
    group: Group, contenders: Mapping[str, Contender], nbytes: int, seconds: float
) -> list[Row]:
    calls = {name: make(np.zeros(nbytes // 4, np.float32)) for name, make in contenders.items()}
    sent = all_reduce_bytes(nbytes, group.size)
    return [
        {
            "bytes": nbytes,
            "algorithm": name,
            "median_us": 1e6 * median,
            "algorithm_gb_s": nbytes / median / 1e9,
            "bus_gb_s": sent / median / 1e9,
        }
        for name, median in time_interleaved(calls, group, seconds=seconds).items()
    ]
