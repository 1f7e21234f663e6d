"""A second way to add up a schedule, for tests of the cost model: a clock for each rank."""

from __future__ import annotations

from collections import defaultdict, deque

from mpidl.collectives.engine.execute import LARGE
from mpidl.collectives.schedule import Algorithm, Exchange
from mpidl.performance.cost import leaves_node
from mpidl.performance.machine import Machine

ITEMSIZE = 4


class Clocks:
    """Ranks that wait for their own messages only; for schedules of exchanges."""

    def __init__(self, algorithm: Algorithm, length: int, size: int, machine: Machine) -> None:
        self.machine = machine
        self.schedules = [iter(algorithm(rank, size, length)) for rank in range(size)]
        self.current = [next(schedule, None) for schedule in self.schedules]
        self.clock = [0.0] * size
        self.sent = [False] * size
        self.arrivals: dict[tuple[int, int], deque[float]] = defaultdict(deque)

    def run(self) -> float:
        """The latest of all clocks at the end, in seconds."""
        while any(step is not None for step in self.current):
            moved = [self.advance(rank) for rank in range(len(self.clock))]
            if not any(moved):
                raise AssertionError("the schedule never ends: ranks wait for each other")
        return max(self.clock)

    def advance(self, rank: int) -> bool:
        """Whether a rank could send, or end its round."""
        step = self.current[rank]
        if step is None:
            return False
        assert isinstance(step, Exchange)
        sends = not self.sent[rank]
        if sends:
            self.sent[rank] = True
            if self.sending(rank, step):
                arrival = self.clock[rank] + self.sending(rank, step)
                self.arrivals[rank, step.dest].append(arrival)
        if nbytes(step.receive) and not self.arrivals[step.source, rank]:
            return sends
        self.clock[rank] = self.finish(rank, step)
        self.current[rank] = next(self.schedules[rank], None)
        self.sent[rank] = False
        return True

    def sending(self, rank: int, step: Exchange) -> float:
        """Seconds of the message, 0 for none."""
        if not nbytes(step.send):
            return 0.0
        remote = leaves_node(rank, step, self.machine)
        return self.machine.message_seconds(nbytes(step.send), remote)

    def finish(self, rank: int, step: Exchange) -> float:
        """When the round ends."""
        now = self.clock[rank]
        end = now + self.sending(rank, step)
        received = nbytes(step.receive)
        if not received:
            return end
        end = max(end, self.arrivals[step.source, rank].popleft())
        if not step.reduce:
            return end
        # a large segment is reduced while the next one is in flight
        reduction = self.machine.reduce_seconds(received)
        return end + reduction if received < LARGE else max(end, now + reduction)


def nbytes(span: tuple[int, int]) -> int:
    return (span[1] - span[0]) * ITEMSIZE


def latest_clock(algorithm: Algorithm, length: int, size: int, machine: Machine) -> float:
    return Clocks(algorithm, length, size, machine).run()
