"""Dynamic batching: when the waiting requests of a model are a batch, and which batch goes first.

Plain objects: the time is a number of nanoseconds that the caller gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from mpidl.serving.queue import Pending, RequestQueue
from mpidl.serving.settings import ModelSettings

GUESS = 100_000  # nanoseconds of computing a sample, until one was measured


class Batcher:
    """Makes batches of the waiting requests of a model.

    Args:
        settings: Of the model.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self.settings = settings
        self.queue = RequestQueue(settings)
        self._delay = settings.max_queue_delay_microseconds * 1000
        self._preferred = sorted(settings.preferred_batch_size, reverse=True)

    def size(self, now: int) -> int:
        """Samples that the next batch may have now; 0: it waits for more."""
        rows, most = self.queue.rows, self.settings.max_batch_size
        if not len(self.queue):
            return 0
        if rows >= most:
            return most
        preferred = next((size for size in self._preferred if size <= rows), 0)
        if preferred:
            return preferred
        oldest = self.queue.oldest()
        return most if oldest is not None and now >= oldest + self._delay else 0

    def take(self, now: int) -> list[Pending]:
        """The next batch; empty where there is none yet."""
        size = self.size(now)
        taken = self.queue.take(size) if size else []
        if size and not taken:  # the most urgent request is larger than a preferred size
            taken = self.queue.take(self.settings.max_batch_size)
        return taken

    def next_time(self, now: int) -> int | None:
        """When the answer of `size` changes without a new request, or a request expires."""
        oldest, deadline = self.queue.oldest(), self.queue.next_deadline()
        ends = None if oldest is None else oldest + self._delay
        return min((time for time in (deadline, ends) if time and time > now), default=None)


@dataclass(eq=False)
class Worker:
    """A rank that computes.

    Attributes:
        rank: Its number.
        flying: Numbers of the messages that it has been sent and has not answered.
        alive: Whether it can be sent more.
        since: When it was last heard of, or sent a message while it had none.
    """

    rank: int
    flying: set[int] = field(default_factory=set)
    alive: bool = True
    since: int = 0


@dataclass(eq=False)
class Lane:
    """The way of a model's batches to its ranks.

    Attributes:
        handle: By which the ranks know the model.
        batcher: Its batches.
        workers: The ranks that hold it.
        clock: Nanoseconds that it has been given, divided by its weight.
        row_time: Nanoseconds of computing a sample, measured.
        flying: Its batches that are computed.
    """

    handle: int
    batcher: Batcher
    workers: list[Worker]
    clock: float = 0.0
    row_time: float = GUESS
    flying: int = 0


class Scheduler:
    """Shares the ranks among models by weight: the batch of the model that has had least is next.

    Args:
        in_flight: Batches that a rank has been given at most.
    """

    def __init__(self, in_flight: int) -> None:
        self.in_flight = in_flight
        self.lanes: list[Lane] = []

    def add(self, lane: Lane) -> None:
        """A model begins where the one with least stands."""
        lane.clock = min((other.clock for other in self.lanes), default=0.0)
        self.lanes.append(lane)

    def remove(self, lane: Lane) -> None:
        """A model ends."""
        self.lanes.remove(lane)

    def wake(self, lane: Lane) -> None:
        """A model that had nothing to do must not make up for it."""
        if not len(lane.batcher.queue) and not lane.flying:
            busy = [o.clock for o in self.lanes if o.flying or len(o.batcher.queue)]
            lane.clock = max(lane.clock, min(busy, default=lane.clock))

    def dispatch(self, now: int) -> Iterator[tuple[Lane, Worker, list[Pending]]]:
        """The batches that can go now, and where to; the caller sends each."""
        for lane in sorted(self._waiting(), key=lambda lane: lane.clock):
            yield from self._dispatch_one(lane, now)

    def _waiting(self) -> list[Lane]:
        """The models for which requests wait."""
        return [lane for lane in self.lanes if len(lane.batcher.queue)]

    def _dispatch_one(self, first: Lane, now: int) -> Iterator[tuple[Lane, Worker, list[Pending]]]:
        """Batches of a model, as long as it is its turn or no other has one."""
        while True:
            others = [o for o in self._waiting() if o is not first and o.batcher.size(now)]
            if any(other.clock < first.clock and self._free(other) for other in others):
                lane = min((o for o in others if self._free(o)), key=lambda lane: lane.clock)
            else:
                lane = first
            worker = self._free(lane)
            batch = lane.batcher.take(now) if worker is not None else []
            if worker is None or not batch:
                return
            rows = sum(request.rows for request in batch)
            lane.clock += rows * lane.row_time / lane.batcher.settings.weight
            yield lane, worker, batch

    def _free(self, lane: Lane) -> Worker | None:
        """The rank with least to do that can take a batch of a model."""
        free = [w for w in lane.workers if w.alive and len(w.flying) < self.in_flight]
        return min(free, key=lambda worker: len(worker.flying), default=None)

    def learn(self, lane: Lane, rows: int, nanoseconds: int) -> None:
        """A batch took so long."""
        lane.row_time += 0.2 * (nanoseconds / max(1, rows) - lane.row_time)

    def next_time(self, now: int) -> int | None:
        """When `dispatch` or `expire` may have something to do without anything happening."""
        times = [lane.batcher.next_time(now) for lane in self._waiting()]
        return min((time for time in times if time is not None), default=None)
