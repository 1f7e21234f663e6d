"""Predicts how long a schedule takes on a described machine.

The alpha-beta-gamma model (Hockney, 1994; Thakur et al., 2005): a message of n bytes takes
alpha + n beta, by the links inside a node or between nodes; reducing n bytes takes n gamma.
Messages that leave a node in the same round share its link. The schedules are those that `execute`
runs.
"""

from __future__ import annotations

import math
from itertools import zip_longest

from mpidl.collectives.engine.execute import LARGE
from mpidl.collectives.schedule import Algorithm, Exchange, Range, Round, Shared, all_reduce_bytes
from mpidl.performance.machine import Machine


def predict(
    algorithm: Algorithm, length: int, size: int, machine: Machine, itemsize: int = 4
) -> float:
    """Seconds that an algorithm takes when all ranks start together.

    The sum over rounds of the slowest message among the first node's ranks, which are taken as
    representative: this is quick for thousands of ranks.

    Args:
        algorithm: Its schedule.
        length: Elements of the buffer.
        size: Number of ranks.
        machine: Where it runs.
        itemsize: Bytes of an element.
    """
    if size == 1 or not length:
        return 0.0
    ranks = range(min(machine.ranks_per_node, size))
    schedules = [algorithm(rank, size, length) for rank in ranks]
    total = 0.0
    for rounds in zip_longest(*schedules):
        steps = list(zip(ranks, rounds, strict=True))
        flows = max(1, sum(leaves_node(rank, step, machine) for rank, step in steps))
        total += max(_seconds(rank, step, machine, size, itemsize, flows) for rank, step in steps)
    return total


def leaves_node(rank: int, step: Round | None, machine: Machine) -> bool:
    """Whether the message of `rank` in this round leaves its node."""
    if not isinstance(step, Exchange):
        return False
    peer = step.dest if _length(step.send) else step.source
    return rank // machine.ranks_per_node != peer // machine.ranks_per_node


def _length(span: Range) -> int:
    return span[1] - span[0]


def _seconds(
    rank: int, step: Round | None, machine: Machine, size: int, itemsize: int, flows: int
) -> float:
    """Of one round of one rank."""
    if step is None:
        return 0.0
    if isinstance(step, Exchange):
        nbytes = max(_length(step.send), _length(step.receive)) * itemsize
        transfer = machine.message_seconds(nbytes, leaves_node(rank, step, machine), flows)
        received = _length(step.receive) * itemsize if step.reduce else 0
        reduction = machine.reduce_seconds(received)
        # a large segment is reduced while the next one is in flight
        return max(transfer, reduction) if nbytes >= LARGE else transfer + reduction
    nbytes = (step.stop - step.start) * itemsize
    if isinstance(step, Shared):
        return machine.shared_seconds(nbytes, len(step.members))
    return _native_seconds(machine, size, nbytes)


def _native_seconds(machine: Machine, size: int, nbytes: int) -> float:
    """Of a good MPI library: recursive doubling for short messages, Rabenseifner for long ones."""
    rounds = math.ceil(math.log2(size))
    remote = size > machine.ranks_per_node
    flows = machine.ranks_per_node if remote else 1
    message = machine.message_seconds(nbytes, remote, flows)
    short = rounds * (message + machine.reduce_seconds(nbytes))
    sent = all_reduce_bytes(nbytes, size)
    latency = machine.message_seconds(0, remote)
    transfer = machine.message_seconds(sent, remote, flows)
    return min(short, 2 * rounds * latency + transfer + machine.reduce_seconds(sent / 2))
