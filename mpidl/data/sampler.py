"""The order of samples: shuffled, equal for any number of ranks, local to each rank's shards.

The samples 0..N-1 are divided into as many contiguous *lanes* as the global batch has samples;
batch b takes the b-th sample of every lane, each lane being shuffled from (seed, epoch, lane).
Rank r owns the lanes [r B / P, (r + 1) B / P), which is the contiguous range
[r N / P, (r + 1) N / P) of the data set, so that it reads its own shards only, in every epoch.
With more ranks each owns fewer lanes, yet every batch holds the same samples: P ranks see what one
rank sees. Lanes also stratify: a data set sorted by class still gives mixed batches.
See docs/decisions/001-lanes.md.

Where B does not divide N, lanes differ by one sample at most; the last batch then has samples of
the longer lanes only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mpidl.data.shuffle import Indices, shuffled
from mpidl.errors import DataError

NONE = -1  # where an order has no sample


@dataclass(frozen=True)
class Window:
    """Consecutive steps of an epoch whose samples are in memory together.

    Attributes:
        first_step: The first of the steps.
        last_step: One beyond the last.
        pieces: (start, stop) ranges of samples to read, ascending.
        rows: rows[s] are the rows of the concatenated pieces that form this rank's part of the
            batch of step first_step + s.
    """

    first_step: int
    last_step: int
    pieces: tuple[tuple[int, int], ...]
    rows: tuple[Indices, ...]


@dataclass(frozen=True)
class LaneSampler:
    """The order of samples, and one rank's part of it.

    The order itself does not depend on rank and size.

    Attributes:
        samples: N, in the data set.
        global_batch: B, samples per step over all ranks.
        rank: This rank.
        size: P, number of ranks.
        seed: Of the shuffle.
        shuffle: False: the samples of a lane in their order.
        window: Steps that are in memory together, the depth of the shuffle in each lane; None: the
            whole lane.

    Raises:
        DataError: There are fewer samples than one batch needs, or fewer in a batch than ranks.
    """

    samples: int
    global_batch: int
    rank: int = 0
    size: int = 1
    seed: int = 0
    shuffle: bool = True
    window: int | None = None

    def __post_init__(self) -> None:
        if self.samples < self.global_batch:
            raise DataError(
                f"{self.samples} samples are too few for a global batch of {self.global_batch}",
                remedy="lower train.global_batch, or use more data",
            )
        if self.global_batch < self.size:
            raise DataError(
                f"a global batch of {self.global_batch} is too small for {self.size} ranks: "
                "some would never have a sample",
                remedy=f"raise train.global_batch to {self.size} or more, or use fewer ranks",
            )

    @property
    def steps(self) -> int:
        """Steps in an epoch; the last one may be smaller."""
        return -(-self.samples // self.global_batch)

    @property
    def lanes(self) -> range:
        """The lanes that this rank owns."""
        return range(
            self.rank * self.global_batch // self.size,
            (self.rank + 1) * self.global_batch // self.size,
        )

    def lane(self, index: int) -> tuple[int, int]:
        """The range of samples of lane `index`."""
        start = index * self.samples // self.global_batch
        return start, (index + 1) * self.samples // self.global_batch

    @property
    def owned_range(self) -> tuple[int, int]:
        """The contiguous range of samples that this rank reads, in every epoch."""
        return self.lane(self.lanes.start)[0], self.lane(self.lanes.stop - 1)[1]

    def cuts(self, step: int, parts: int) -> list[int]:
        """Where this rank's batch is divided into micro-batches.

        The cuts lie between the same lanes for any number of ranks that divides `parts`.

        Args:
            step: Of the epoch.
            parts: Micro-batches over all ranks.

        Returns:
            Positions in this rank's batch, parts // size + 1 of them.
        """
        borders = [self.lanes.start, self.lanes.stop]
        if parts % self.size == 0:
            own = parts // self.size
            borders = [(self.rank * own + k) * self.global_batch // parts for k in range(own + 1)]
        if self.count(step) == self.global_batch:
            return [border - self.lanes.start for border in borders]
        present = [lane for lane in self.lanes if self.lane(lane)[1] - self.lane(lane)[0] > step]
        return [bisect_left(present, border) for border in borders]

    def count(self, step: int) -> int:
        """Samples in batch `step` over all ranks."""
        if step < self.steps - 1 or self.samples % self.global_batch == 0:
            return self.global_batch
        return self.samples % self.global_batch

    def seen(self, steps: int) -> int:
        """Samples over all ranks in the first `steps` steps of a run."""
        epochs, rest = divmod(steps, self.steps)
        return epochs * self.samples + rest * self.global_batch

    def lane_order(self, epoch: int, index: int) -> Indices:
        """The samples of lane `index` in the order of an epoch."""
        order = self._orders(epoch, range(index, index + 1))[0]
        return np.asarray(order[order != NONE])

    def _orders(self, epoch: int, lanes: range) -> Indices:
        """`lane_order` of each lane, (lanes, steps); NONE where a lane is one sample shorter."""
        borders = np.arange(lanes.start, lanes.stop + 1) * self.samples // self.global_batch
        lengths = np.diff(borders)
        orders = np.full((len(lanes), self.steps), NONE)
        for length in np.unique(lengths).tolist():  # one, or two
            same = np.flatnonzero(lengths == length)
            order = np.arange(length)[None]
            if self.shuffle:
                key = [self.seed, epoch]
                order = shuffled(key, same + lanes.start, length, self.window or length)
            orders[same, :length] = order + borders[same, None]
        return orders

    def windows(self, epoch: int, first_step: int = 0) -> Iterator[Window]:
        """The windows of an epoch from `first_step` on."""
        orders = self._orders(epoch, self.lanes)
        depth = self.steps if self.window is None else min(self.window, self.steps)
        for low in range(first_step // depth * depth, self.steps, depth):
            yield self._window(orders, max(low, first_step), min(low + depth, self.steps), low)

    def _window(self, orders: Indices, first: int, last: int, low: int) -> Window:
        held = orders[:, low:last]
        counts = (held != NONE).sum(axis=1)
        # a lane's part of a window is a block of consecutive samples
        starts = np.where(held == NONE, self.samples, held).min(axis=1)
        shift = starts - (np.cumsum(counts) - counts)  # sample - shift = row
        rows = np.ascontiguousarray((orders[:, first:last] - shift[:, None]).T)
        steps = list(rows)
        if self.count(last - 1) < self.global_batch:
            steps[-1] = rows[-1][orders[:, last - 1] != NONE]
        return Window(first, last, _runs(starts, starts + counts), tuple(steps))


def _runs(starts: Indices, stops: Indices) -> tuple[tuple[int, int], ...]:
    """Ascending ranges, with those joined that follow one another, without the empty ones."""
    some = stops > starts
    starts, stops = starts[some], stops[some]
    breaks = starts[1:] != stops[:-1]
    first = np.concatenate([np.ones(min(1, len(starts)), bool), breaks])
    last = np.concatenate([breaks, np.ones(min(1, len(starts)), bool)])
    return tuple(zip(starts[first].tolist(), stops[last].tolist(), strict=True))


def window_steps(
    samples: int, global_batch: int, sample_bytes: int, window_bytes: int
) -> int | None:
    """The window of a sampler for a given amount of memory.

    Args:
        samples: In the data set.
        global_batch: Samples per step.
        sample_bytes: Size of one.
        window_bytes: What all ranks together may hold, about.

    Returns:
        Steps; None: the whole data set fits.
    """
    if samples * sample_bytes <= window_bytes:
        return None
    return max(1, window_bytes // (2 * global_batch * sample_bytes))  # one used, one read


def contiguous_batches(samples: int, rank: int, size: int, batch: int) -> Iterator[tuple[int, int]]:
    """This rank's contiguous part of the data set in ranges of at most `batch` samples.

    For evaluation, where the order does not matter.
    """
    low, high = rank * samples // size, (rank + 1) * samples // size
    for start in range(low, high, batch):
        yield start, min(start + batch, high)
