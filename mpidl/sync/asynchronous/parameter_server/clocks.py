"""The rules of a parameter server, without communication: who may go on, which gradients count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Clocks:
    """The clocks of the workers: how many gradients of each have been used.

    A worker may begin a step if its clock is at most `staleness` ahead of the slowest of those
    present (Ho et al., 2013): 0 is bulk-synchronous, None asynchronous. Gradients carry numbers;
    one that comes a second time, from a worker that was cut off before it heard of the first, is
    not used again.

    Attributes:
        staleness: See above.
        clocks: Of the workers that are present.
        used: The number of the last gradient used, of all workers that ever were.
        waiting: Workers that want to go on.
        applied: Gradients used, by worker.
    """

    staleness: int | None
    clocks: dict[int, int] = field(default_factory=dict)
    used: dict[int, int] = field(default_factory=dict)
    waiting: set[int] = field(default_factory=set)
    applied: Counter[int] = field(default_factory=Counter)

    def restart(self, workers: Iterable[int]) -> None:
        """A new epoch: these workers are present, at equal clocks."""
        self.clocks.clear()
        self.waiting.clear()
        for worker in workers:
            self.join(worker)

    def join(self, worker: int) -> int:
        """A worker joins, or comes back, with the clock of the slowest.

        Returns:
            The number of its last gradient that was used.
        """
        self.clocks[worker] = min(self.clocks.values(), default=0)
        self.waiting.discard(worker)
        return self.used.setdefault(worker, 0)

    def leave(self, worker: int) -> None:
        """A worker leaves, or is lost; nobody waits for it any more."""
        self.clocks.pop(worker, None)
        self.waiting.discard(worker)

    def accept(self, worker: int, number: int) -> bool:
        """Gradient `number` of a worker has come. The worker then waits to go on.

        Returns:
            Whether the gradient is to be used.
        """
        self.ask(worker)
        if number <= self.used.get(worker, 0):
            return False
        self.used[worker] = number
        self.applied[worker] += 1
        self.clocks[worker] += 1
        return True

    def ask(self, worker: int) -> None:
        """A worker wants to go on, without a gradient: its first step."""
        if worker not in self.clocks:
            self.join(worker)
        self.waiting.add(worker)

    def release(self) -> list[int]:
        """The waiting workers that may go on now, in ascending order; they wait no longer."""
        slowest = min(self.clocks.values(), default=0)
        free = [
            worker
            for worker in sorted(self.waiting)
            if self.staleness is None or self.clocks[worker] - slowest <= self.staleness
        ]
        self.waiting.difference_update(free)
        return free

    @property
    def complete(self) -> bool:
        """Whether all that are present have equal clocks: with staleness 0, a round is over."""
        return len(set(self.clocks.values())) <= 1
