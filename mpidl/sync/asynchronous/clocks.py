"""The rules of a parameter server, without any communication: who may go on, and which gradients count.

Every worker has a clock: the gradients of its that have been used. A worker may begin a step if its clock is at most
`staleness` ahead of the slowest worker's that is there (Ho et al., 2013): 0 is bulk-synchronous, None asynchronous. Gradients
carry numbers; one that comes a second time, from a worker that was cut off before it heard of the first, is not used again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Clocks:
    """staleness: see above. clocks: of workers that are there; used: number of the last gradient used, of all that ever
    were."""

    staleness: int | None
    clocks: dict[int, int] = field(default_factory=dict)
    used: dict[int, int] = field(default_factory=dict)
    waiting: set[int] = field(default_factory=set)
    applied: Counter[int] = field(default_factory=Counter)

    def join(self, worker: int) -> int:
        """A worker comes, or comes back: with the clock of the slowest. Returns the number of its last gradient that was
        used."""
        self.clocks[worker] = min(self.clocks.values(), default=0)
        self.waiting.discard(worker)
        return self.used.setdefault(worker, 0)

    def leave(self, worker: int) -> None:
        """A worker goes, or is lost; nobody waits for it any more."""
        self.clocks.pop(worker, None)
        self.waiting.discard(worker)

    def take(self, worker: int, number: int) -> bool:
        """Gradient `number` of a worker has come: whether it is to be used. The worker then waits to go on."""
        if worker not in self.clocks:
            self.join(worker)
        self.waiting.add(worker)
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
        """The waiting workers that may go on now, in their order; they wait no longer."""
        slowest = min(self.clocks.values(), default=0)
        free = [
            w
            for w in sorted(self.waiting)
            if self.staleness is None or self.clocks[w] - slowest <= self.staleness
        ]
        self.waiting.difference_update(free)
        return free

    @property
    def complete(self) -> bool:
        """Whether all that are there have equal clocks: with staleness 0, that a round is over."""
        return len(set(self.clocks.values())) <= 1
