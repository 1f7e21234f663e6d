"""Predicts a training step on a described machine: gradients leave in buckets while backward still runs.

Weak scaling: every rank keeps its batch. Backward takes two thirds of a rank's compute time and makes gradients evenly;
a bucket's exchange begins when its gradients are there and the exchange before it is over.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpidl.collectives.algorithms.hierarchical import hierarchical
from mpidl.collectives.api import ALL_REDUCE
from mpidl.collectives.schedule import Algorithm
from mpidl.performance.cost import Machine, predict

BACKWARD = 2 / 3  # of forward and backward together


@dataclass(frozen=True)
class Step:
    """One predicted step. Times in seconds. exposed: communication that nothing hides; efficiency: compute / step.

    algorithms: seconds of one bucket's exchange by algorithm.
    """

    ranks: int
    nodes: int
    algorithm: str
    buckets: int
    bucket_bytes: int
    bucket_seconds: float
    communication: float
    exposed: float
    seconds: float
    efficiency: float
    algorithms: dict[str, float]


def candidates(machine: Machine, size: int) -> dict[str, Algorithm]:
    """The algorithms that can run with `size` ranks on this machine."""
    found = {name: algorithm for name, algorithm in ALL_REDUCE.items() if name != "direct"}
    if machine.ranks_per_node > 1:
        found["hierarchical"] = hierarchical(machine.nodes(size))
    return found


def plan_step(
    machine: Machine,
    size: int,
    *,
    gradient_bytes: int,
    compute: float,
    bucket_bytes: int,
    overlap: bool = True,
) -> Step:
    """The step of `size` ranks with the best algorithm. compute: seconds of one rank's forward and backward, measured."""
    count = max(1, -(-gradient_bytes // bucket_bytes))
    each = -(-gradient_bytes // count)
    taken = {
        name: predict(algorithm, each // 4, size, machine)
        for name, algorithm in candidates(machine, size).items()
    }
    best = min(taken, key=lambda name: taken[name])
    forward, backward, end = compute * (1 - BACKWARD), compute * BACKWARD, 0.0
    for index in range(count):
        ready = forward + backward * (index + 1) / count if overlap else compute
        end = max(end, ready) + taken[best]
    seconds = max(compute, end)
    return Step(
        ranks=size,
        nodes=max(machine.nodes(size)) + 1,
        algorithm=best,
        buckets=count,
        bucket_bytes=each,
        bucket_seconds=taken[best],
        communication=taken[best] * count,
        exposed=seconds - compute,
        seconds=seconds,
        efficiency=compute / seconds,
        algorithms=taken,
    )


def rank_counts(first: int, last: int) -> list[int]:
    """`first`, its doubles below `last`, and `last`."""
    counts = []
    while first < last:
        counts.append(first)
        first *= 2
    return [*counts, last]
