"""Measures collectives, and the numbers that the cost model needs, on the ranks at hand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from mpidl.collectives.group import Group
from mpidl.comm import mpi
from mpidl.performance.cost import Machine

TAG = 9001


def interleaved(
    contenders: dict[str, Callable[[], None]], group: Group, *, seconds: float = 0.5, least: int = 5
) -> dict[str, float]:
    """Median seconds of one call of each contender, taken in turns so that all see the same weather. Collective.

    Every measurement is the time of the slowest rank. Short calls are repeated within one measurement.
    """
    once = {name: _slowest(call, group, 1) for name, call in contenders.items()}
    once = {name: min(_slowest(call, group, 3), once[name]) for name, call in contenders.items()}
    repeats = {name: max(1, min(200, int(2e-3 / taken))) for name, taken in once.items()}
    turns = max(
        least, min(60, int(seconds / sum(once[name] * repeats[name] for name in contenders)))
    )
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(turns):
        for name, call in contenders.items():
            times[name].append(_slowest(call, group, repeats[name]))
    return {name: statistics.median(taken) for name, taken in times.items()}


def _slowest(call: Callable[[], None], group: Group, repeats: int) -> float:
    group.comm.Barrier()
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    taken = (time.perf_counter() - started) / repeats
    slowest: float = group.comm.allreduce(taken, op=mpi.load().MAX)
    return slowest


def fit(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """(latency in seconds, bytes per second): the time of the smallest message, and the slope between the two largest.

    Not a line through all of them: caches and traffic shapers let messages of medium size pass faster than long ones.
    """
    slope = (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2])
    return seconds[0], 1 / max(slope, 1e-15)


def network(group: Group, *, sizes: Sequence[int] = (64, 1 << 20, 1 << 22)) -> Machine:
    """Measure this machine: exchanges inside a node and between nodes, reducing, shared memory. Collective.

    Ranks exchange around rings, of the ranks of a node or of the first ranks of all nodes. What cannot be measured here keeps
    the default.
    """
    found: dict[str, Any] = {
        "ranks_per_node": max(group.nodes.count(node) for node in set(group.nodes))
    }
    if group.shares:
        latency, rate = fit(sizes, [_exchange(group, nbytes, remote=False) for nbytes in sizes])
        found |= {"node_latency_us": latency * 1e6, "node_gb_s": rate / 1e9}
        found |= _shared(group)
    if group.node_count > 1:
        latency, rate = fit(sizes, [_exchange(group, nbytes, remote=True) for nbytes in sizes])
        found |= {"latency_us": latency * 1e6, "bandwidth_gb_s": rate / 1e9}
    a, b = np.ones(1 << 18, np.float32), np.ones(1 << 18, np.float32)
    taken = interleaved({"add": partial(_add, a, b)}, group, seconds=0.2)["add"]
    found["reduce_gb_s"] = a.nbytes / taken / 1e9
    return Machine(**found)


def _add(a: Any, b: Any) -> None:
    np.add(a, b, out=a)


def _shared(group: Group) -> dict[str, float]:
    from mpidl.collectives.api import all_reduce

    node, found = Group(group.node_comm, name="node"), Machine()
    rates = {"shared_latency_us": found.shared_latency_us, "shared_gb_s": found.shared_gb_s}
    if node.size > 1:
        small, large = np.zeros(256, np.float32), np.zeros(1 << 22, np.float32)
        calls: dict[str, Callable[[], None]] = {
            str(one.nbytes): partial(all_reduce, one, comm=node) for one in (small, large)
        }
        quick, slow = interleaved(calls, node).values()
        rates = {"shared_latency_us": quick * 1e6, "shared_gb_s": large.nbytes / slow / 1e9}
    node.free()
    shared: dict[str, float] = group.comm.bcast(rates, root=0)
    return shared


def _exchange(group: Group, nbytes: int, *, remote: bool) -> float:
    """Median seconds of a Sendrecv with a partner; ranks without one stay silent."""
    partner = _partner(group, remote)
    give, take = np.zeros(nbytes, np.uint8), np.zeros(nbytes, np.uint8)
    peer = partner if partner is not None else mpi.load().PROC_NULL
    source = _source(group, remote) if partner is not None else mpi.load().PROC_NULL

    def call() -> None:
        group.comm.Sendrecv(give, peer, TAG, take, source, TAG)

    return interleaved({"exchange": call}, group, seconds=0.3)["exchange"]


def _ring_of(group: Group, remote: bool) -> list[int]:
    """The ranks that exchange around a ring: those of a node, or the first ranks of all nodes."""
    if remote:
        return [group.nodes.index(node) for node in range(group.node_count)]
    return [rank for rank, node in enumerate(group.nodes) if node == group.nodes[group.rank]]


def _partner(group: Group, remote: bool) -> int | None:
    ring = _ring_of(group, remote)
    return (
        ring[(ring.index(group.rank) + 1) % len(ring)]
        if group.rank in ring and len(ring) > 1
        else None
    )


def _source(group: Group, remote: bool) -> int:
    ring = _ring_of(group, remote)
    return ring[ring.index(group.rank) - 1]
