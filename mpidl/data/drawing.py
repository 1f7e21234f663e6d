"""The samples that lanes draw in an epoch: a function of (seed, epoch, lane, step), without state.

Lane l owns the slots [l E / B, (l + 1) E / B) of the E slots of an epoch, and with them the
occurrences a..b of each stratum (`Strata.before`). They draw from the part [a n / C, b n / C) of
the n samples of the stratum: a lane has its own part, so a rank reads its own shards. Occurrences
go through the part pass after pass, on from one epoch to the next: every sample of a part is drawn
once before any is drawn again. What a window of steps draws is then shuffled in each lane.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mpidl.data import native
from mpidl.data.strata import Strata, plain

Indices = NDArray[np.int64]
_WINDOWS, _BLOCKS = 1, 2  # what a permutation is of


class Order(Protocol):
    """What `Drawing` asks of a sampler."""

    @property
    def samples(self) -> int:
        """Samples of an epoch."""

    @property
    def global_batch(self) -> int:
        """Samples of a step."""

    @property
    def seed(self) -> int:
        """Of all orders."""

    @property
    def shuffle(self) -> bool:
        """Whether orders are drawn."""

    @property
    def window(self) -> int | None:
        """Steps that are in memory together; None: all."""

    @property
    def strata(self) -> Strata | None:
        """What an epoch draws from; None: each sample once."""


class Drawing:
    """What some lanes draw in one epoch.

    Args:
        order: The sampler.
        epoch: From 0.
        lanes: (n,) numbers of the lanes, consecutive.

    Attributes:
        is_whole: Nothing is mixed and all steps are one window.
    """

    def __init__(self, order: Order, epoch: int, lanes: Indices) -> None:
        self.order = order
        self.epoch = epoch
        self.lanes = lanes
        self.strata = strata = order.strata or plain(order.samples)
        borders = np.r_[lanes, lanes[-1] + 1] * order.samples // order.global_batch
        self._slots, self._stops = borders[:-1], borders[1:]
        self.is_whole = strata.is_plain and order.window is None
        if self.is_whole:  # each lane has its samples, shuffled
            return
        counts = strata.before(borders)
        self._first, stops = counts[:-1], counts[1:]  # (lanes, strata), as all below
        self._drawn = stops - self._first
        draws, sizes = np.maximum(strata.draws, 1), strata.sizes
        low = self._first * sizes // draws
        high = np.maximum(-(-stops * sizes // draws), low + 1)
        self._high = np.where(self._drawn > 0, np.minimum(high, sizes), 0)
        self._low = np.where(self._drawn > 0, np.minimum(low, self._high - 1), 0)
        self._size = np.maximum(self._high - self._low, 1)
        self._prepare_blocks()

    def _prepare_blocks(self) -> None:
        """The order in which each pass of this epoch goes through the blocks of a part."""
        window, steps = self.order.window, -(-self.order.samples // self.order.global_batch)
        share = self.strata.draws[None, :] * min(window or 1, steps) // self.order.samples
        self._block = np.minimum(np.maximum(share if window else 1, 1), self._size)
        self._from = self.epoch * self._drawn
        self._pass = self._from // self._size  # the first of this epoch
        last = (self._from + np.maximum(self._drawn, 1) - 1) // self._size
        # Where an epoch draws a part once and shuffles it as a whole, this order does not matter
        whole = (self._size == self._drawn) & (window is None)
        self._blocks = np.where(whole | (not self.order.shuffle), 0, self._size // self._block)
        passes = np.where(self._drawn > 0, last - self._pass + 1, 0)
        lengths = np.repeat(self._blocks.reshape(-1), passes.reshape(-1))
        starts = np.r_[0, np.cumsum(lengths)]
        self._table = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
        self._table_start = np.cumsum(passes * self._blocks) - (passes * self._blocks).reshape(-1)
        owner = np.repeat(np.arange(passes.size), passes.reshape(-1))
        number = np.arange(len(owner)) - np.repeat(
            np.cumsum(passes) - passes.reshape(-1), passes.reshape(-1)
        )
        lane, stratum = np.divmod(owner, len(self.strata.draws))
        self._shuffle(
            self._table, starts, self.lanes[lane], stratum, self._pass.reshape(-1)[owner] + number
        )

    def _shuffle(
        self, x: Indices, starts: Indices, lanes: Indices, stratum: Indices, number: Indices
    ) -> None:
        keys = native.keys(self.order.seed, _BLOCKS, number, lanes, stratum)
        native.shuffle_rows(x, starts, keys)

    def window(self, low: int, high: int) -> tuple[Indices, Indices, Indices]:
        """The samples of the steps [low, high).

        Returns:
            samples, starts, order: lane r draws samples[order[starts[r] : starts[r + 1]]], in the
            order of steps. Where nothing is mixed the samples mostly ascend.
        """
        if self.is_whole:
            samples = np.arange(self._slots[0], self._stops[-1])
            return samples, *self._shuffled(self._stops - self._slots, low)
        before = self.strata.before(np.minimum(self._slots + low, self._stops))
        counts = self.strata.before(np.minimum(self._slots + high, self._stops)) - before
        flat = counts.reshape(-1)
        owner = np.repeat(np.arange(flat.size), flat)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(flat) - flat, flat)
        position = within + (self._from + before - self._first).reshape(-1)[owner]
        samples = self._samples(owner, position)
        return samples, *self._shuffled(counts.sum(axis=1), low)

    def _shuffled(self, lengths: Indices, low: int) -> tuple[Indices, Indices]:
        """Where lanes of these lengths start, and a permutation of each: starts, order."""
        starts = np.r_[0, np.cumsum(lengths)]
        order = np.arange(starts[-1])
        if self.order.shuffle:
            keys = native.keys(self.order.seed, _WINDOWS, self.epoch, self.lanes, low)
            native.shuffle_rows(order, starts, keys)
        return starts, order

    def _samples(self, owner: Indices, position: Indices) -> Indices:
        """The samples at positions of parts, counted over all epochs; owner: lane and stratum."""
        size, block = self._size.reshape(-1)[owner], self._block.reshape(-1)[owner]
        blocks = self._blocks.reshape(-1)[owner]
        number, place = np.divmod(position, size)
        number -= self._pass.reshape(-1)[owner]
        which, inside = np.divmod(place, block)
        moved = which < blocks  # a shorter block stays last
        at = (self._table_start[owner] + number * blocks + which)[moved]
        which[moved] = self._table[at]
        found = self._low.reshape(-1)[owner] + which * block + inside
        found += self.strata.starts[owner % len(self.strata.draws)]
        members = self.strata.members
        return np.ascontiguousarray(found if members is None else members[found])

    def owned(self) -> Indices:
        """All samples that these lanes draw in any epoch, ascending."""
        if self.is_whole:
            return np.arange(self._slots[0], self._stops[-1])
        low, high = self._low + self.strata.starts, self._high + self.strata.starts
        flat = np.where(self._drawn > 0, high - low, 0).reshape(-1)
        found = np.arange(flat.sum()) + np.repeat(low.reshape(-1) - (np.cumsum(flat) - flat), flat)
        members = self.strata.members
        return ascending(found if members is None else members[found])


def ascending(numbers: Indices) -> Indices:
    """The different ones among `numbers`; np.unique hashes, which takes 3 times as long."""
    found = np.sort(numbers)
    return found[np.diff(found, prepend=-1) > 0]
