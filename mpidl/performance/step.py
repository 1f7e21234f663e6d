"""Predicts a training step on a described machine, in which buckets leave during backward.

Weak scaling: every rank keeps its batch. Backward takes two thirds of a rank's compute time and
makes gradients evenly; a bucket's exchange begins when its gradients are ready and the exchange
before it is over.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpidl.collectives.algorithms import ALL_REDUCE
from mpidl.collectives.schedule import Algorithm
from mpidl.performance.cost import predict
from mpidl.performance.machine import Machine

BACKWARD = 2 / 3  # of forward and backward together


@dataclass(frozen=True)
class Step:
    """One predicted training step. Times are in seconds.

    Attributes:
        ranks: Number of ranks.
        nodes: Number of nodes.
        algorithm: The fastest all-reduce.
        buckets: Number of buckets.
        bucket_bytes: Bytes of one bucket.
        bucket_seconds: One bucket's all-reduce.
        communication: The all-reduces of all buckets.
        exposed: The communication that backward does not hide.
        seconds: The step.
        efficiency: Compute time by step time.
        algorithms: One bucket's all-reduce by algorithm.
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
    placement = machine.nodes(size)
    return {
        name: entry.make(placement)
        for name, entry in ALL_REDUCE.items()
        # the model gives "direct" the time of the ring, though its messages go to P - 1 peers
        if name != "direct" and (machine.ranks_per_node > 1 or not entry.shared_memory)
    }


def plan_step(
    machine: Machine,
    size: int,
    *,
    gradient_bytes: int,
    compute: float,
    bucket_bytes: int,
    overlap: bool = True,
) -> Step:
    """The step of `size` ranks with the fastest algorithm.

    Args:
        machine: Where it runs.
        size: Number of ranks.
        gradient_bytes: Of the whole model.
        compute: Seconds of one rank's forward and backward, measured.
        bucket_bytes: Upper bound of a bucket.
        overlap: Whether buckets leave during backward.
    """
    count = max(1, -(-gradient_bytes // bucket_bytes))
    bucket = -(-gradient_bytes // count)
    times = {
        name: predict(algorithm, bucket // 4, size, machine)
        for name, algorithm in candidates(machine, size).items()
    }
    best = min(times, key=lambda name: times[name])
    forward = compute * (1 - BACKWARD)
    backward = compute * BACKWARD
    end = 0.0
    for index in range(count):
        ready = forward + backward * (index + 1) / count if overlap else compute
        end = max(end, ready) + times[best]
    seconds = max(compute, end)
    return Step(
        ranks=size,
        nodes=max(machine.nodes(size)) + 1,
        algorithm=best,
        buckets=count,
        bucket_bytes=bucket,
        bucket_seconds=times[best],
        communication=times[best] * count,
        exposed=seconds - compute,
        seconds=seconds,
        efficiency=compute / seconds,
        algorithms=times,
    )


def rank_counts(first: int, last: int) -> list[int]:
    """`first`, its doublings below `last`, and `last`."""
    counts = []
    while first < last:
        counts.append(first)
        first *= 2
    return [*counts, last]
