"""Buckets: slices of the flat gradient buffer that leave one by one while backward still runs.

Backward runs from the last layer to the first, and so do the buckets.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mpidl.nn import FlatParameters

DEFAULT_BYTES = 4 << 20


def bucket_bytes(mebibytes: float) -> int:
    """The size of a bucket from a setting in MiB, of which 0 is the default."""
    return int(mebibytes * (1 << 20)) or DEFAULT_BYTES


@dataclass(frozen=True)
class Bucket:
    """Elements [start, stop) of the flat buffer.

    Attributes:
        start: First element.
        stop: The one after the last.
        name: Its number and its parameters, for error messages and as the key of state.
    """

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
    """Cut the flat buffer between parameters into buckets of about `nbytes`.

    Returns:
        Buckets of at least one parameter each, in the order in which they leave.
    """
    limit = nbytes // parameters.dtype.itemsize
    spans = []
    stop, names = parameters.length, []
    for name, slot in reversed(parameters.slots.items()):
        names.append(name)
        if stop - slot.start >= limit:
            spans.append((slot.start, stop, names))
            stop, names = slot.start, []
    if stop:
        spans.append((0, stop, names))
    return [
        Bucket(start, stop, f"bucket {index} ({_span(names)})")
        for index, (start, stop, names) in enumerate(spans)
    ]


def _span(names: list[str]) -> str:
    return names[0] if len(names) < 2 else f"{names[-1]} to {names[0]}"


class BucketDispatcher:
    """Sends each bucket as soon as all its gradients are final.

    Args:
        buckets: In the order in which they become final, from the end to the beginning.
        send: Called for each bucket once a step, in this order.
    """

    def __init__(self, buckets: list[Bucket], send: Callable[[Bucket], None]) -> None:
        self.buckets = buckets
        self.send = send
        self._next = 0

    def ready(self, start: int) -> None:
        """Everything from element `start` on is final."""
        while self._next < len(self.buckets) and self.buckets[self._next].start >= start:
            self._next += 1
            self.send(self.buckets[self._next - 1])

    def flush(self) -> None:
        """Send what is left, and begin anew."""
        self.ready(0)
        self._next = 0


class BucketTuner:
    """Tries bucket sizes for some steps each; stays with the one of the smallest median step time.

    Args:
        candidates: Sizes in bytes.
        steps: To try each of them.

    Attributes:
        best: The size that was found, in bytes; None before.
    """

    def __init__(self, candidates: Iterable[int], steps: int = 8) -> None:
        self.candidates = list(candidates)
        self.steps = steps
        self.times: dict[int, list[float]] = {size: [] for size in self.candidates}
        self.best: int | None = None

    @property
    def current(self) -> int:
        """The bucket size in bytes for the next step."""
        if self.best is not None:
            return self.best
        return next(size for size in self.candidates if len(self.times[size]) < self.steps)

    def record(self, seconds: float) -> bool:
        """Take the time of a step.

        Args:
            seconds: The same on all ranks.

        Returns:
            Whether the next step has another bucket size.
        """
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
