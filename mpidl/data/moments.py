"""Mean and variance of streams in float64: two passes over each block, blocks merged exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.data.manifest import MAX_CHANNELS, Statistics

BLOCK = 1 << 20  # elements that are float64 at a time
Exact = NDArray[np.float64]


def channels_of(shape: tuple[int, ...]) -> int:
    """The number of channels whose statistics a field of this sample shape has; 0: none.

    The last axis holds the channels, except where there are two: (h, w) is a gray image, and
    (time, channels) looks the same.
    """
    return shape[-1] if len(shape) in (1, *range(3, 17)) and shape[-1] <= MAX_CHANNELS else 0


@dataclass
class Moments:
    """Moments of what was added so far, for each channel.

    Attributes:
        count: Elements in a channel.
        mean: (c,) float64.
        squares: (c,) float64, sums of squared deviations from `mean`.
        smallest: (c,) float64.
        largest: (c,) float64.
    """

    count: int
    mean: Exact
    squares: Exact
    smallest: Exact
    largest: Exact

    @classmethod
    def empty(cls, channels: int) -> Moments:
        """Of nothing, in `channels` channels."""
        zeros = np.zeros(channels)
        return cls(0, zeros, zeros, np.full(channels, np.inf), np.full(channels, -np.inf))

    @classmethod
    @np.errstate(over="ignore")  # infinities, which are refused with the name of the field
    def of(cls, block: NDArray[Any]) -> Moments:
        """Of (n, c) elements, n > 0."""
        exact = np.array(block.T, np.float64, order="C")  # rows are summed pairwise, and faster
        smallest, largest = exact.min(axis=1), exact.max(axis=1)
        mean = exact.mean(axis=1)
        # A mean of equal numbers may round; dividing by the deviation from it would be noise
        mean = np.where(smallest == largest, smallest, mean)
        exact -= mean[:, None]
        np.square(exact, out=exact)
        return cls(len(block), mean, exact.sum(axis=1), smallest, largest)

    def add(self, array: NDArray[Any]) -> None:
        """Add elements, (n, ..., c), or any shape where there is one channel."""
        rows = array.reshape(-1, len(self.mean))
        step = max(1, BLOCK // len(self.mean))
        for start in range(0, len(rows), step):
            self.merge(Moments.of(rows[start : start + step]))

    @np.errstate(over="ignore", invalid="ignore")
    def merge(self, other: Moments) -> None:
        """Add what others were told of (Chan, Golub and LeVeque, 1983)."""
        total = self.count + other.count
        if not other.count:
            return
        weight, delta = other.count / total, other.mean - self.mean
        self.squares = self.squares + other.squares + delta * delta * (self.count * weight)
        self.mean = self.mean + delta * weight if self.count else other.mean
        self.smallest = np.minimum(self.smallest, other.smallest)
        self.largest = np.maximum(self.largest, other.largest)
        self.count = total

    def together(self) -> Moments:
        """Of all channels as one."""
        result = Moments.empty(1)
        parts = (self.mean, self.squares, self.smallest, self.largest)
        for values in zip(*parts, strict=True):
            result.merge(Moments(self.count, *(np.array([value]) for value in values)))
        return result

    def deviations(self) -> Exact:
        """Standard deviations, (c,)."""
        deviations: Exact = np.sqrt(self.squares / self.count)
        return deviations


def statistics_of(parts: Sequence[Moments], shape: tuple[int, ...]) -> Statistics:
    """The statistics of a field from the moments of all ranks.

    Args:
        parts: Of the ranks; some may have seen nothing, but not all.
        shape: Of one sample.
    """
    channels = Moments.empty(len(parts[0].mean))
    for part in parts:
        channels.merge(part)
    everything = channels.together()
    mean, std = float(everything.mean[0]), float(everything.deviations()[0])
    if not channels_of(shape):
        return Statistics.with_checksum(mean, std)
    return Statistics.with_checksum(
        mean, std, tuple(channels.mean.tolist()), tuple(channels.deviations().tolist())
    )
