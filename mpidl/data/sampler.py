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
from numpy.typing import NDArray

from mpidl.data.drawing import Drawing, ascending
from mpidl.data.strata import Strata
from mpidl.errors import DataError

Indices = NDArray[np.int64]
WINDOWS_HELD = 3  # in memory: the one in use, and those that are being read


@dataclass(frozen=True)
class Window:
    """Consecutive steps of an epoch whose samples are in memory together.

    Attributes:
        first_step: The first of the steps.
        last_step: One beyond the last.
        pieces: (start, stop) ranges of samples to read, ascending.
        rows: rows[s] are the rows of the concatenated pieces that form this rank's part of the
            batch of step first_step + s.
        partners: The same of each sample's partner: the one that its lane draws in the next step
            of the window, and after the last step in the first; empty where nobody asks for them.
    """

    first_step: int
    last_step: int
    pieces: tuple[tuple[int, int], ...]
    rows: tuple[Indices, ...]
    partners: tuple[Indices, ...] = ()


def sample_numbers(pieces: tuple[tuple[int, int], ...], rows: Indices) -> Indices:
    """The numbers in the data set of rows of concatenated pieces."""
    if len(pieces) == 1:
        return rows + pieces[0][0]
    ends = np.cumsum([stop - start for start, stop in pieces], dtype=np.int64)
    piece = np.searchsorted(ends, rows, side="right")
    return np.asarray(rows - ends[piece] + np.array(pieces, np.int64).reshape(-1, 2)[piece, 1])


@dataclass(frozen=True)
class LaneSampler:
    """The order of samples, and one rank's part of it.

    The order itself does not depend on rank and size.

    Attributes:
        samples: N, in an epoch.
        global_batch: B, samples per step over all ranks.
        rank: This rank.
        size: P, number of ranks.
        seed: Of the shuffle.
        shuffle: False: the samples of a lane in their order.
        window: Steps that are in memory together, the depth of the shuffle in each lane; None: the
            whole lane.
        strata: What an epoch draws from; None: each sample once.
        pairs: Whether samples have partners.

    Raises:
        DataError: There are fewer samples than one batch needs, fewer in a batch than ranks, or no
            partners in memory.
    """

    samples: int
    global_batch: int
    rank: int = 0
    size: int = 1
    seed: int = 0
    shuffle: bool = True
    window: int | None = None
    strata: Strata | None = None
    pairs: bool = False

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
        if self.pairs and self.depth < 2:
            raise DataError(
                "samples are mixed with those of the next step, but the data in memory are those "
                "of one step",
                remedy="raise data.window_bytes, lower train.global_batch, or remove "
                "augment.mixup and augment.cutmix",
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
        depth = self.depth
        lanes, parts = np.array([index]), []
        drawn = Drawing(self, epoch, lanes)
        for low in range(0, self.steps, depth):
            samples, _, order = drawn.window(low, min(low + depth, self.steps))
            parts.append(samples[order])
        return np.concatenate(parts)

    @property
    def depth(self) -> int:
        """Steps of a window."""
        return self.steps if self.window is None else min(self.window, self.steps)

    def windows(self, epoch: int, first_step: int = 0) -> Iterator[Window]:
        """The windows of an epoch from `first_step` on."""
        drawn = Drawing(self, epoch, np.arange(self.lanes.start, self.lanes.stop))
        kept = drawn.owned() if self.window is None and not drawn.is_whole else None
        depth = self.depth
        for low in range(first_step // depth * depth, self.steps, depth):
            last = min(low + depth, self.steps)
            samples, starts, order = drawn.window(low, last)
            pieces, rows = self._pieces(samples, kept)
            order = order if rows is None else rows[order]
            first = max(low, first_step)
            steps = range(first - low, last - low)
            found = tuple(self._by_step(order, starts, steps))
            partners = tuple(self._by_step(order, starts, steps, 1)) if self.pairs else ()
            yield Window(first, last, pieces, found, partners)

    def _pieces(
        self, samples: Indices, kept: Indices | None
    ) -> tuple[tuple[tuple[int, int], ...], Indices | None]:
        """The ranges to read, and the row of each sample there; None: 0, 1, 2, ..."""
        if kept is None and (np.diff(samples) > 0).all():
            wanted, rows = samples, None
        else:
            wanted = ascending(samples) if kept is None else kept
            rows = np.searchsorted(wanted, samples)
        first = wanted[np.diff(wanted, prepend=-2) != 1]
        last = wanted[np.diff(wanted, append=np.int64(1 << 62)) != 1] + 1
        return tuple(zip(first.tolist(), last.tolist(), strict=True)), rows

    @staticmethod
    def _by_step(rows: Indices, starts: Indices, steps: range, ahead: int = 0) -> Iterator[Indices]:
        """The rows of each step of a window, where lane r has rows[starts[r] : starts[r + 1]].

        `ahead`: instead those of so many steps later in the same lane, cyclically.
        """
        lengths = np.diff(starts)
        whole = min(int(lengths.min()) - ahead, steps.stop)
        even = np.arange(steps.start + ahead, whole + ahead)[:, None] + starts[:-1]
        yield from rows[even]
        for step in range(max(whole, steps.start), steps.stop):  # the last of an epoch
            place = (step + ahead) % np.maximum(lengths, 1)
            yield rows[(starts[:-1] + place)[lengths > step]]


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
    return max(1, window_bytes // (WINDOWS_HELD * global_batch * sample_bytes))


def contiguous_batches(samples: int, rank: int, size: int, batch: int) -> Iterator[tuple[int, int]]:
    """This rank's contiguous part of the data set in ranges of at most `batch` samples.

    For evaluation, where the order does not matter.
    """
    low, high = rank * samples // size, (rank + 1) * samples // size
    for start in range(low, high, batch):
        yield start, min(start + batch, high)
