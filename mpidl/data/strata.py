"""What an epoch draws from: strata of samples, each drawn a fixed number of times an epoch.

A plain data set is one stratum, drawn once. Data sets mixed by weight are one stratum each, and
balanced sampling makes a stratum of each class. The slots of an epoch, lane after lane, are dealt
out to the strata evenly: occurrence k of C of a stratum stands at the place (k + 1/2) / C of the
epoch, and slots take the occurrences by place. How many occurrences of each stratum lie before a
slot is thus a function of its number, which every rank computes for the lanes that it owns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
_GRID = 1 << 30  # places are compared on a grid: integers, equal on every machine


@dataclass(frozen=True)
class Strata:
    """Disjoint sets of samples and how often an epoch draws from each.

    Attributes:
        draws: (strata,) times that an epoch draws from each stratum; the sum is its samples.
        sizes: (strata,) samples in each, at least 1 where it is drawn from.
        members: The samples of all strata, one stratum after another, each ascending; None: the
            numbers 0, 1, 2, ...
    """

    draws: Indices
    sizes: Indices
    members: Indices | None = None

    @cached_property
    def starts(self) -> Indices:
        """(strata,) where each begins among the members."""
        return np.asarray(np.cumsum(self.sizes) - self.sizes)

    @cached_property
    def epoch_samples(self) -> int:
        """Samples in an epoch."""
        return int(self.draws.sum())

    @property
    def is_plain(self) -> bool:
        """Whether an epoch has the samples 0, 1, 2, ... once each."""
        return self.members is None and len(self.sizes) == 1 and self.draws[0] == self.sizes[0]

    def before(self, slots: Indices) -> Indices:
        """(n, strata): occurrences of each stratum in the first slots[i] slots of an epoch.

        Each row adds up to slots[i], and none falls with slots[i].
        """
        if len(self.draws) == 1:
            return np.asarray(slots[:, None])
        low, high = np.full(len(slots), -1), np.full(len(slots), _GRID)
        while (high - low > 1).any():  # the first place at which there are enough occurrences
            middle = (low + high) // 2
            enough = self._placed(middle).sum(axis=1) >= slots
            high, low = np.where(enough, middle, high), np.where(enough, low, middle)
        certain, tied = self._placed(high - 1), self._placed(high)
        tied -= certain  # stand at the same place: taken in the order of the strata
        rest = (slots - certain.sum(axis=1))[:, None]
        earlier = np.cumsum(tied, axis=1) - tied
        return np.asarray(certain + np.clip(rest - earlier, 0, tied))

    def _placed(self, place: Indices) -> Indices:
        """(n, strata): occurrences up to a place of the grid, inclusive."""
        wide = 2 * self.draws[None, :]
        found = ((place[:, None] + 1) * wide + _GRID - 1) // (2 * _GRID)
        return np.asarray(np.clip(found, 0, self.draws[None, :]))


def plain(samples: int) -> Strata:
    """All samples of a data set once."""
    return Strata(np.array([samples]), np.array([samples]))


def apportion(total: int, weights: Sequence[float] | NDArray[np.float64]) -> Indices:
    """Divide `total` draws by weight: largest remainders, so each share is exact to one draw."""
    exact = np.asarray(weights, np.float64)
    exact = total * (exact / exact.sum())
    found = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - found), kind="stable")
    found[order[: total - int(found.sum())]] += 1
    return np.asarray(found)
