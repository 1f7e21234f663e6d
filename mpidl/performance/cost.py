"""Predicts how long a schedule takes on a described machine: the alpha-beta-gamma model (Hockney, 1994; Thakur et al., 2005).

A message of n bytes takes alpha + n beta, by the links inside a node or between nodes; reducing n bytes takes n gamma. Messages
that leave a node in the same round share its link. Two ways to add it up: `follow` gives every rank a clock of its own,
`lockstep` watches the ranks of the first node and lets every round last as long as its slowest message, for thousands of ranks.
Both read the schedules that `execute` runs.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict, dataclass, fields
from itertools import zip_longest
from typing import Any

from mpidl.collectives.engine.execute import LARGE
from mpidl.collectives.schedule import Algorithm, Exchange, Native, Round, Shared
from mpidl.errors import ConfigError


@dataclass(frozen=True)
class Machine:
    """What the model needs to know. Latencies are those of a whole round, with what Python and MPI add; in microseconds.
    Bandwidths in GB/s (10^9 bytes): of a node's link in each direction, of a rank's messages inside a node, and of reducing.

    shared_latency_us, shared_gb_s: an all-reduce in the shared memory of a node, bytes of the buffer by time.
    """

    latency_us: float = 5.0
    bandwidth_gb_s: float = 12.5
    node_latency_us: float = 2.0
    node_gb_s: float = 5.0
    reduce_gb_s: float = 8.0
    shared_latency_us: float = 3.0
    shared_gb_s: float = 4.0
    ranks_per_node: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ConfigError(
                    f"{field.name} is {getattr(self, field.name)}",
                    where="machine",
                    remedy="it must be positive",
                )

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    def nodes(self, size: int) -> tuple[int, ...]:
        """The node of each of `size` ranks, filled one after another."""
        return tuple(rank // self.ranks_per_node for rank in range(size))

    def message(self, nbytes: float, remote: bool, flows: int = 1) -> float:
        """Seconds for one message, when `flows` of them share the node's link."""
        if remote:
            return self.latency_us * 1e-6 + nbytes * flows / (self.bandwidth_gb_s * 1e9)
        return self.node_latency_us * 1e-6 + nbytes / (self.node_gb_s * 1e9)

    def reducing(self, nbytes: float) -> float:
        """Seconds to reduce one buffer into another."""
        return nbytes / (self.reduce_gb_s * 1e9)

    def shared(self, nbytes: float, ranks: int) -> float:
        """Seconds for a round in shared memory; every rank's memory traffic is that of two ranks, plus the waiting."""
        return self.shared_latency_us * 1e-6 * max(1, math.log2(ranks)) + nbytes / (
            self.shared_gb_s * 1e9
        )


def predict(
    algorithm: Algorithm, length: int, size: int, machine: Machine, itemsize: int = 4
) -> float:
    """Seconds for `length` elements over `size` ranks, all starting together."""
    if size == 1 or not length:
        return 0.0
    return lockstep(algorithm, length, size, machine, itemsize)


def lockstep(
    algorithm: Algorithm, length: int, size: int, machine: Machine, itemsize: int = 4
) -> float:
    """Sum over rounds of the slowest message of the first node's ranks, who stand for all; quick for thousands of ranks."""
    own = range(min(machine.ranks_per_node, size))
    schedules = [algorithm(rank, size, length) for rank in own]
    total = 0.0
    for rounds in zip_longest(*schedules):
        steps = list(zip(own, rounds, strict=True))
        flows = max(1, sum(_leaves(rank, step, machine) for rank, step in steps))
        total += max(_duration(rank, step, machine, size, itemsize, flows) for rank, step in steps)
    return total


def follow(
    algorithm: Algorithm, length: int, size: int, machine: Machine, itemsize: int = 4
) -> float:
    """The latest of all ranks' clocks, each waiting for its own messages; for exchanges, up to some hundred ranks."""
    schedules = [iter(algorithm(rank, size, length)) for rank in range(size)]
    current = [next(schedule, None) for schedule in schedules]
    clock, sent = [0.0] * size, [False] * size
    mail: dict[tuple[int, int], deque[float]] = {}
    while any(step is not None for step in current):
        moved = False
        for rank, step in enumerate(current):
            if step is None:
                continue
            if not isinstance(step, Exchange):
                raise ConfigError("only exchanges have clocks of their own", remedy="use lockstep")
            if not sent[rank]:
                sent[rank] = moved = True
                _post(rank, step, clock[rank], mail, machine, itemsize)
            if _amount(step.receive) and not mail.get((step.source, rank)):
                continue
            clock[rank] = _finish(rank, step, clock[rank], mail, machine, itemsize)
            current[rank], sent[rank], moved = next(schedules[rank], None), False, True
        if not moved:
            raise ConfigError("the schedule never ends: ranks wait for each other")
    return max(clock)


def _post(
    rank: int, step: Exchange, now: float, mail: Any, machine: Machine, itemsize: int
) -> None:
    if _amount(step.send):
        arrival = now + machine.message(_amount(step.send) * itemsize, _leaves(rank, step, machine))
        mail.setdefault((rank, step.to), deque()).append(arrival)


def _finish(
    rank: int, step: Exchange, now: float, mail: Any, machine: Machine, itemsize: int
) -> float:
    end = now
    if _amount(step.send):
        end = now + machine.message(_amount(step.send) * itemsize, _leaves(rank, step, machine))
    arriving = _amount(step.receive) * itemsize
    if arriving:
        end = max(end, mail[step.source, rank].popleft())
        if step.combine:
            # while a large segment is reduced the next one is on its way
            reducing = machine.reducing(arriving)
            end = end + reducing if arriving < LARGE else max(end, now + reducing)
    return end


def _amount(span: tuple[int, int]) -> int:
    return span[1] - span[0]


def _leaves(rank: int, step: Round | None, machine: Machine) -> bool:
    """Whether this round's message leaves the node."""
    if not isinstance(step, Exchange):
        return False
    peer = step.to if _amount(step.send) else step.source
    return rank // machine.ranks_per_node != peer // machine.ranks_per_node


def _duration(
    rank: int, step: Round | None, machine: Machine, size: int, itemsize: int, flows: int
) -> float:
    if step is None:
        return 0.0
    if isinstance(step, Exchange):
        nbytes = max(_amount(step.send), _amount(step.receive)) * itemsize
        combined = machine.reducing(_amount(step.receive) * itemsize) if step.combine else 0.0
        transfer = machine.message(nbytes, _leaves(rank, step, machine), flows)
        return max(transfer, combined) if nbytes >= LARGE else transfer + combined
    nbytes = (step.stop - step.start) * itemsize
    if isinstance(step, Shared):
        return machine.shared(nbytes, len(step.members))
    return _native(step, machine, size, nbytes)


def _native(step: Native, machine: Machine, size: int, nbytes: float) -> float:
    """What a good library does: recursive doubling for short messages, Rabenseifner's algorithm for long ones."""
    rounds, remote = math.ceil(math.log2(size)), size > machine.ranks_per_node
    flows = machine.ranks_per_node if remote else 1
    short = rounds * (machine.message(nbytes, remote, flows) + machine.reducing(nbytes))
    moved = 2 * (size - 1) / size * nbytes
    long = (
        2 * rounds * machine.message(0, remote)
        + machine.message(moved, remote, flows)
        + machine.reducing(moved / 2)
    )
    return min(short, long)
