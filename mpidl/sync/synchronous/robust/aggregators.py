"""How the gradients of all ranks become one, when some of them may be arbitrarily wrong.

A rank sees some columns of the gradients of all ranks. What needs whole gradients (distances) is
summed over the ranks from what each sees.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.backend import Array
from mpidl.comm.transport import array_module
from mpidl.registry import Registry

COLUMNS = 1 << 14  # of a block that stays in the cache
ROUNDS, CLOSE = 12, 1e-4  # of Weiszfeld's algorithm; relative change at which it ends
Sums = NDArray[np.float64]


@dataclass(frozen=True)
class Gradients:
    """Some columns of the gradients of all ranks that count.

    Attributes:
        rows: (k, n), one rank each.
        weights: (k,), their samples.
        bad: How many of them may be wrong.
        total: Sums a small array over all ranks. Collective.
    """

    rows: Array
    weights: Sums
    bad: int
    total: Callable[[Sums], Sums]

    @property
    def count(self) -> int:
        """Ranks."""
        return len(self.rows)

    def mean(self, weights: Sums) -> Array:
        """(n,), the weighted mean of the rows."""
        shares = (weights / weights.sum()).astype(self.rows.dtype)
        xp: Any = array_module(self.rows)
        mean: Array = xp.asarray(shares) @ self.rows
        return mean


def to_host(values: Any) -> Sums:
    """A small array on the host, in float64."""
    host = values if isinstance(values, np.ndarray) else values.get()
    return np.asarray(host, np.float64)


class Aggregator(ABC):
    """Makes one gradient of many."""

    @classmethod
    @abstractmethod
    def most_bad(cls, ranks: int) -> int:
        """How many of `ranks` gradients may be arbitrary."""

    @classmethod
    @abstractmethod
    def combine(cls, gradients: Gradients) -> Array:
        """(n,), one gradient. Collective."""


class Mean(Aggregator):
    """The mean over all samples: one wrong rank can move it anywhere."""

    @classmethod
    def most_bad(cls, ranks: int) -> int:
        return 0

    @classmethod
    def combine(cls, gradients: Gradients) -> Array:
        return gradients.mean(gradients.weights)


class TrimmedMean(Aggregator):
    """In each coordinate the mean without the largest and smallest (Yin et al., 2018)."""

    @classmethod
    def most_bad(cls, ranks: int) -> int:
        return max(0, (ranks - 1) // 2)

    @classmethod
    def combine(cls, gradients: Gradients) -> Array:
        return _mean_of_sorted(gradients, gradients.bad)


class Median(Aggregator):
    """In each coordinate the median (Yin et al., 2018)."""

    @classmethod
    def most_bad(cls, ranks: int) -> int:
        return max(0, (ranks - 1) // 2)

    @classmethod
    def combine(cls, gradients: Gradients) -> Array:
        return _mean_of_sorted(gradients, (gradients.count - 1) // 2)


class Krum(Aggregator):
    """The mean of the gradients nearest to their neighbors (Multi-Krum: Blanchard et al., 2017)."""

    @classmethod
    def most_bad(cls, ranks: int) -> int:
        return max(0, (ranks - 3) // 2)

    @classmethod
    def combine(cls, gradients: Gradients) -> Array:
        count, bad = gradients.count, gradients.bad
        distances = pairwise_distances(gradients)
        np.fill_diagonal(distances, 0.0)
        nearest = np.sort(distances, axis=1)[:, 1 : max(2, count - bad - 1)]
        order = np.argsort(nearest.sum(axis=1), kind="stable")
        chosen = np.zeros(count)
        chosen[order[: count - bad]] = 1
        return gradients.mean(gradients.weights * chosen)


class GeometricMedian(Aggregator):
    """The point of least distance to all gradients (Weiszfeld; RFA: Pillutla et al., 2022)."""

    @classmethod
    def most_bad(cls, ranks: int) -> int:
        return max(0, (ranks - 1) // 2)

    @classmethod
    def combine(cls, gradients: Gradients) -> Array:
        weights = gradients.weights / gradients.weights.sum()
        found = Median.combine(gradients)  # the mean may be far away
        for _ in range(ROUNDS):
            squares = gradients.total(squared_norms(gradients.rows - found))
            distances = np.sqrt(squares)
            own = weights / np.maximum(distances, 1e-6 * np.median(distances) + 1e-30)
            moved = gradients.mean(own)
            step = gradients.total(squared_norms((moved - found)[None]))[0]
            found = moved
            if step <= CLOSE**2 * np.median(squares):
                break
        return found


AGGREGATORS: Registry[type[Aggregator]] = Registry(
    "aggregator",
    "sync.aggregate",
    {
        name: f"mpidl.sync.synchronous.robust.aggregators:{kind}"
        for name, kind in (
            ("mean", "Mean"),
            ("median", "Median"),
            ("trimmed_mean", "TrimmedMean"),
            ("krum", "Krum"),
            ("geometric_median", "GeometricMedian"),
        )
    },
)


def squared_norms(rows: Any) -> Sums:
    """(k,), of this rank's columns of each row."""
    return np.array([float(row @ row) for row in rows])


def pairwise_distances(gradients: Gradients) -> Sums:
    """(k, k), squared distances between whole gradients. Collective."""
    centered = gradients.rows - gradients.rows.mean(axis=0)  # small numbers cancel less
    products = gradients.total(to_host(centered @ centered.T))
    squares = np.diag(products)
    return np.maximum(squares[:, None] + squares[None] - 2 * products, 0.0)


def comparisons(count: int) -> Iterator[tuple[int, int]]:
    """Pairs of a sorting network (Batcher's odd-even merge sort, Knuth 5.2.2M).

    Args:
        count: Of what is sorted.
    """
    power = 1 << max(0, (count - 1).bit_length() - 1)
    first = power
    while first:
        other, rest, distance = power, 0, first
        while True:
            for i in range(count - distance):
                if i & first == rest:
                    yield i, i + distance
            if other == first:
                break
            distance, rest = other - first, first
            other >>= 1
        first >>= 1


def sort_columns(rows: Array) -> None:
    """Sort each column of (k, n), in place."""
    xp: Any = array_module(rows)
    low = xp.empty_like(rows[0])
    for i, j in comparisons(len(rows)):
        xp.minimum(rows[i], rows[j], out=low)
        xp.maximum(rows[i], rows[j], out=rows[j])
        rows[i] = low


def _mean_of_sorted(gradients: Gradients, cut: int) -> Array:
    """In each coordinate the mean without `cut` at both ends."""
    rows = gradients.rows
    found = rows[0].copy()
    step = COLUMNS if isinstance(rows, np.ndarray) else max(1, rows.shape[1])
    for low in range(0, rows.shape[1], step):
        part = rows[:, low : low + step].copy()
        sort_columns(part)
        found[low : low + step] = part[cut : gradients.count - cut].mean(axis=0)
    return found
