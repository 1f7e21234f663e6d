"""Buckets: slices of the flat gradient buffer that leave one by one while backward still runs, last layers first."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mpidl.nn import FlatParameters


@dataclass(frozen=True)
class Bucket:
    """Elements [start, stop) of the flat buffer; name: its number and its parameters, for error messages."""

    start: int
    stop: int
    name: str

    def layout(self, parameters: FlatParameters) -> list[tuple[int, int, tuple[int, ...]]]:
        """The tensors in it: (start, stop, shape), counted from its start."""
        return [
            (slot.start - self.start, slot.stop - self.start, slot.spec.shape)
            for slot in parameters.slots.values()
            if self.start <= slot.start and slot.stop <= self.stop
        ]


def cut(parameters: FlatParameters, nbytes: int) -> list[Bucket]:
    """Cut between parameters into buckets of about `nbytes`, at least one parameter each; in the order in which they leave."""
    limit, spans = nbytes // parameters.dtype.itemsize, []
    stop, names = parameters.length, []
    for name, slot in reversed(parameters.slots.items()):
        names.append(name)
        if stop - slot.start >= limit:
            spans.append((slot.start, stop, names))
            stop, names = slot.start, []
    if stop:
        spans.append((0, stop, names))
    return [
        Bucket(start, stop, f"bucket {index} ({_named(names)})")
        for index, (start, stop, names) in enumerate(spans)
    ]


def _named(names: list[str]) -> str:
    return names[0] if len(names) < 2 else f"{names[-1]} to {names[0]}"


class BucketDispatcher:
    """Sends each bucket off as soon as all its gradients are final. Gradients become final from the end to the beginning."""

    def __init__(self, buckets: list[Bucket], send: Callable[[Bucket], None]) -> None:
        self.buckets, self.send, self._next = buckets, send, 0

    def ready(self, start: int) -> None:
        """Everything from `start` on is final."""
        while self._next < len(self.buckets) and self.buckets[self._next].start >= start:
            self._next += 1
            self.send(self.buckets[self._next - 1])

    def flush(self) -> None:
        """Send what is left, and begin anew."""
        self.ready(0)
        self._next = 0


class BucketTuner:
    """Tries bucket sizes for some steps each, and then stays with the one with the smallest median step time."""

    def __init__(self, candidates: Iterable[int], steps: int = 8) -> None:
        self.candidates, self.steps = list(candidates), steps
        self.times: dict[int, list[float]] = {size: [] for size in self.candidates}
        self.best: int | None = None

    @property
    def current(self) -> int:
        """The bucket size in bytes for the next step."""
        if self.best is not None:
            return self.best
        return next(size for size in self.candidates if len(self.times[size]) < self.steps)

    def record(self, seconds: float) -> bool:
        """Take the time of a step, the same on all ranks; True when the size for the next step is another one."""
        if self.best is not None:
            return False
        before = self.current
        self.times[before].append(seconds)
        if all(len(times) >= self.steps for times in self.times.values()):
            # the first two steps of each size fill caches and buffers
            self.best = min(
                self.candidates, key=lambda size: statistics.median(self.times[size][2:])
            )
        return self.current != before
