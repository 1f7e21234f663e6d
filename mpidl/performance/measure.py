"""Measures collectives, and the parameters of the cost model, on the ranks at hand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from mpidl.collectives import all_reduce
from mpidl.collectives.algorithms import ALL_REDUCE
from mpidl.collectives.group import Group
from mpidl.comm import mpi, objects
from mpidl.performance.machine import Machine

TAG = 9001
SIZES = (64, 1 << 20, 1 << 22)  # bytes of the exchanges that describe a network
BATCH_SECONDS = 2e-3  # of the calls that one measurement repeats
Call = Callable[[], None]


def usable_algorithms(group: Group) -> tuple[str, ...]:
    """The all-reduce algorithms that differ from the others on this placement of ranks."""
    return tuple(
        name for name, entry in ALL_REDUCE.items() if group.shares or not entry.shared_memory
    )


def time_interleaved(
    calls: Mapping[str, Call], group: Group, *, seconds: float = 0.5, min_rounds: int = 5
) -> dict[str, float]:
    """Median time of each call, of the slowest rank, in seconds. Collective.

    The calls alternate, so that all see the same load of the machine. Short ones are repeated
    within one measurement.

    Args:
        calls: What is measured, by name.
        group: The ranks, which all make the same calls.
        seconds: Measuring time of all calls together.
        min_rounds: Measurements of each call, even where they take longer than `seconds`.
    """
    single = {name: _slowest(call, group, 1) for name, call in calls.items()}
    single = {name: min(_slowest(call, group, 3), single[name]) for name, call in calls.items()}
    repeats = {name: max(1, min(200, int(BATCH_SECONDS / t))) for name, t in single.items()}
    round_seconds = sum(single[name] * repeats[name] for name in calls)
    rounds = max(min_rounds, min(60, int(seconds / round_seconds)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_slowest(call, group, repeats[name]))
    return {name: statistics.median(measured) for name, measured in times.items()}


def _slowest(call: Call, group: Group, repeats: int) -> float:
    """Seconds of one of `repeats` calls, of the slowest rank."""
    group.comm.Barrier()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    elapsed = (time.perf_counter() - start) / repeats
    return objects.largest(group.comm, elapsed)


def fit(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Latency and bandwidth of messages.

    The time of the smallest message, and the slope between the two largest. Not a regression over
    all sizes: caches and traffic shapers let medium messages pass faster than long ones.

    Args:
        sizes: Bytes, ascending.
        seconds: The time of a message of each size.

    Returns:
        Seconds, and bytes per second.
    """
    slope = (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2])
    return seconds[0], 1 / max(slope, 1e-15)


def measure_machine(group: Group, *, sizes: Sequence[int] = SIZES) -> Machine:
    """Measure messages inside a node and between nodes, reducing, and shared memory. Collective.

    Ranks exchange around rings: of the ranks of a node, or of the first ranks of all nodes. A
    parameter that cannot be measured here keeps its default.

    Args:
        group: The ranks.
        sizes: Bytes of the exchanges, ascending.
    """
    per_node = max(group.nodes.count(node) for node in set(group.nodes))
    found: dict[str, Any] = {"ranks_per_node": per_node}
    if group.shares:
        latency, rate = fit(sizes, [_exchange_time(group, n, remote=False) for n in sizes])
        found |= {"node_latency_us": latency * 1e6, "node_gb_s": rate / 1e9}
        found |= _measure_shared(group)
    if group.node_count > 1:
        latency, rate = fit(sizes, [_exchange_time(group, n, remote=True) for n in sizes])
        found |= {"latency_us": latency * 1e6, "bandwidth_gb_s": rate / 1e9}
    total = np.ones(1 << 18, np.float32)
    added = np.ones(1 << 18, np.float32)

    def add() -> None:
        np.add(total, added, out=total)

    found["reduce_gb_s"] = total.nbytes / time_interleaved({"add": add}, group, seconds=0.2)["add"]
    found["reduce_gb_s"] /= 1e9
    return Machine(**found)


def _measure_shared(group: Group) -> dict[str, float]:
    node = Group(group.node_comm, name="node")
    default = Machine()
    rates = {"shared_latency_us": default.shared_latency_us, "shared_gb_s": default.shared_gb_s}
    if node.size > 1:
        small = np.zeros(256, np.float32)
        large = np.zeros(1 << 22, np.float32)
        calls = {
            "small": partial(all_reduce, small, comm=node),
            "large": partial(all_reduce, large, comm=node),
        }
        taken = time_interleaved(calls, node)
        rates["shared_latency_us"] = taken["small"] * 1e6
        rates["shared_gb_s"] = large.nbytes / taken["large"] / 1e9
    node.free()
    return objects.bcast(group.comm, rates, dict[str, float])


def _exchange_time(group: Group, nbytes: int, *, remote: bool) -> float:
    """Median seconds of a Sendrecv with the neighbors on a ring; ranks off the ring stay idle."""
    ring = _ring_ranks(group, remote)
    successor = predecessor = mpi.load().PROC_NULL
    if group.rank in ring and len(ring) > 1:
        position = ring.index(group.rank)
        successor = ring[(position + 1) % len(ring)]
        predecessor = ring[position - 1]
    outgoing = np.zeros(nbytes, np.uint8)
    incoming = np.zeros(nbytes, np.uint8)

    def exchange() -> None:
        group.comm.Sendrecv(outgoing, successor, TAG, incoming, predecessor, TAG)

    return time_interleaved({"exchange": exchange}, group, seconds=0.3)["exchange"]


def _ring_ranks(group: Group, remote: bool) -> list[int]:
    """The ranks of this rank's node, or the first ranks of all nodes."""
    if remote:
        return [group.nodes.index(node) for node in range(group.node_count)]
    return [rank for rank, node in enumerate(group.nodes) if node == group.nodes[group.rank]]
