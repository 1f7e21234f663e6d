"""The order in which samples are seen: shuffled, the same for any number of ranks, and local to each rank's own shards.

The samples 0..N-1 are cut into as many contiguous *lanes* as the global batch has samples; batch b takes the b-th sample of
every lane, each lane being shuffled from (seed, epoch, lane). Rank r owns the lanes [r B / P, (r + 1) B / P), which is the
contiguous range [r N / P, (r + 1) N / P) of the data set, so that it reads nothing but its own shards, whatever the epoch.
With more ranks each owns fewer lanes, yet every batch holds the same samples: N ranks = 1 rank. Lanes also stratify: a data
set sorted by class still gives mixed batches. See docs/decisions/001-lanes.md.

Lanes differ by one sample at most where B does not divide N; the last batch then has samples of the longer lanes only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.errors import DataError

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """Steps [first_step, last_step) of an epoch, with the pieces of the data set that they need.

    pieces: (start, stop) ranges of samples, ascending, to be read one after another. rows[s]: for step first_step + s, which
    rows of the pieces' concatenation form this rank's part of the batch.
    """

    first_step: int
    last_step: int
    pieces: tuple[tuple[int, int], ...]
    rows: tuple[Indices, ...]


@dataclass(frozen=True)
class LaneSampler:
    """The order for one rank.

    samples: N; global_batch: B, samples per step over all ranks; window: steps that are held in memory together, the depth
    of the shuffle in each lane (None: the whole lane). None of the order depends on rank and size.
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
                f"a global batch of {self.global_batch} is too small for {self.size} ranks: some would never have a sample",
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
        return index * self.samples // self.global_batch, (
            index + 1
        ) * self.samples // self.global_batch

    @property
    def owned(self) -> tuple[int, int]:
        """The contiguous range of samples that this rank reads, in every epoch."""
        return self.lane(self.lanes.start)[0], self.lane(self.lanes.stop - 1)[1]

    def cuts(self, step: int, parts: int) -> list[int]:
        """Where this rank's batch of `step` is cut into its share of `parts` micro-batches: parts // size + 1 positions.

        The cuts are between the same lanes for any number of ranks that divides `parts`.
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
        """The samples of lane `index` in the order in which epoch `epoch` sees them."""
        start, stop = self.lane(index)
        length = stop - start
        if not self.shuffle:
            return np.arange(start, stop)
        generator = np.random.Generator(
            np.random.Philox(key=[self.seed, 1], counter=[0, 0, index, epoch])
        )
        if self.window is None or self.window >= length:
            return start + generator.permutation(length)
        blocks = _blocks(length, self.window, generator)
        return start + np.concatenate(
            [low + generator.permutation(high - low) for low, high in blocks]
        )

    def windows(self, epoch: int, first_step: int = 0) -> Iterator[Window]:
        """The windows of an epoch from the one that holds `first_step` on; its earlier steps are left out."""
        orders = [self.lane_order(epoch, lane) for lane in self.lanes]
        depth = self.steps if self.window is None else min(self.window, self.steps)
        for low in range(first_step // depth * depth, self.steps, depth):
            yield self._window(orders, max(low, first_step), min(low + depth, self.steps), low)

    def _window(self, orders: list[Indices], first: int, last: int, low: int) -> Window:
        if self.window is None:
            pieces = [self.owned]
        else:
            wanted = np.sort(np.concatenate([order[low:last] for order in orders]))
            breaks = np.flatnonzero(np.diff(wanted) != 1) + 1
            pieces = [
                (int(run[0]), int(run[-1]) + 1) for run in np.split(wanted, breaks) if run.size
            ]
        return Window(first, last, tuple(pieces), self._rows(orders, first, last, pieces))

    def _rows(
        self, orders: list[Indices], first: int, last: int, pieces: list[tuple[int, int]]
    ) -> tuple[Indices, ...]:
        """The samples of each step, as rows of the concatenated pieces."""
        lengths = np.array([stop - start for start, stop in pieces], dtype=np.int64)
        starts = np.array([start for start, _ in pieces], dtype=np.int64)
        shift = starts - (np.cumsum(lengths) - lengths)  # sample - shift = row

        def rows(samples: Indices) -> Indices:
            if len(pieces) == 1:
                return np.asarray(samples - shift[0])
            return np.asarray(samples - shift[np.searchsorted(starts, samples, side="right") - 1])

        even = min(last, self.samples // self.global_batch)  # up to here every lane has a sample
        steps: list[Indices] = []
        if even > first:
            steps += list(rows(np.array([order[first:even] for order in orders]).T.copy()))
        if last > even:
            steps.append(
                rows(
                    np.array([order[even] for order in orders if len(order) > even], dtype=np.int64)
                )
            )
        return tuple(steps)


def _blocks(length: int, window: int, generator: np.random.Generator) -> list[tuple[int, int]]:
    """Contiguous blocks of `window` samples in random order; the short one stays last, so that windows match steps."""
    full = length // window
    blocks = [(int(b) * window, (int(b) + 1) * window) for b in generator.permutation(full)]
    return blocks + ([(full * window, length)] if length % window else [])


def window_steps(
    samples: int, global_batch: int, sample_bytes: int, window_bytes: int
) -> int | None:
    """How many steps to hold in memory together so that all ranks together hold about `window_bytes`; None: everything."""
    if samples * sample_bytes <= window_bytes:
        return None
    return max(1, window_bytes // (global_batch * sample_bytes))


def contiguous_batches(samples: int, rank: int, size: int, batch: int) -> Iterator[tuple[int, int]]:
    """For evaluation: this rank's contiguous part of the data set in ranges of at most `batch` samples."""
    low, high = rank * samples // size, (rank + 1) * samples // size
    for start in range(low, high, batch):
        yield start, min(start + batch, high)


def sample_order(sampler: LaneSampler, epoch: int) -> list[Any]:
    """All batches of an epoch over all ranks as arrays of sample numbers; for tests and for looking at the order."""
    orders = [sampler.lane_order(epoch, lane) for lane in range(sampler.global_batch)]
    return [
        np.array([order[step] for order in orders if step < len(order)])
        for step in range(sampler.steps)
    ]
