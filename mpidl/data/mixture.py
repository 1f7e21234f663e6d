"""The order of samples where streams of them (data sets, classes) are drawn by given shares.

An epoch is a list of E draws, divided among the streams by their shares, each stream's draws one
after another. They are dealt to the lanes of the global batch like cards, so that every lane has
its part of every stream, to within one draw. Each lane draws from its own part of a stream's
samples, in passes: every sample once in random order, then once more in another order, and so on
over the epochs. Nothing is remembered: the number of a draw since the beginning of the run says
which pass it is in, and where. As with `LaneSampler`, the order depends on the global batch and not
on the ranks, and a rank reads its own part of each stream. See docs/decisions/013-drawing.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from mpidl.data.sampler import NONE, LaneSampler, Window
from mpidl.data.shuffle import Indices, shuffled

PASSES, STREAMS = 3, 4  # what random words are for, beside those of mpidl.data.shuffle
GAP = 8  # samples that are not wanted, between two that are
MEMBERS = 64  # samples that lanes have at least together, so that none of a stream is preferred


@dataclass(frozen=True)
class Stream:
    """Samples that are drawn alike.

    Attributes:
        name: For messages.
        members: Their numbers, ascending; at least one.
        draws: In an epoch.
    """

    name: str
    members: range | Indices
    draws: int


def apportion(shares: Sequence[float], total: int) -> list[int]:
    """`total` divided by shares: each exact to less than one (largest remainders)."""
    exact = [Fraction(share) for share in shares]
    whole = sum(exact)
    wanted = [share * total / whole for share in exact]
    counts = [int(number) for number in wanted]
    left = sorted(range(len(counts)), key=lambda i: (counts[i] - wanted[i], i))
    for index in left[: total - sum(counts)]:
        counts[index] += 1
    return counts


@dataclass(frozen=True)
class _Lot:
    """What some lanes draw from a stream in each epoch, one array element a lane.

    Attributes:
        draws: How many.
        group: Number of the group of lanes that divide the group's samples among them.
        groups: Number of all groups of the stream.
        before: Draws of the group's lanes before this one.
        each: Draws of the whole group.
        first: Its first member.
        members: Number of its members.
    """

    draws: Indices
    group: Indices
    groups: int
    before: Indices
    each: Indices
    first: Indices
    members: Indices


@dataclass(frozen=True)
class MixedSampler(LaneSampler):
    """The order of draws from several streams, and one rank's part of it.

    Attributes:
        streams: What is drawn from; `samples` is the sum of their draws.
    """

    streams: tuple[Stream, ...] = ()

    def lane_order(self, epoch: int, index: int) -> Indices:
        """See `LaneSampler`; samples may be there several times, or not at all."""
        lanes = range(index, index + 1)
        order = self._draw(epoch, lanes, self._lots(lanes))[0]
        return np.asarray(order[order != NONE])

    @cached_property
    def own(self) -> Indices:
        """All samples that this rank draws, in any epoch; ascending."""
        found = [np.empty(0, np.int64)]
        for stream, lot in zip(self.streams, self._own_lots, strict=True):
            ranges = {*zip(lot.first.tolist(), lot.members.tolist(), strict=True)}
            found += [np.asarray(stream.members[low : low + count]) for low, count in ranges]
        return np.unique(np.concatenate(found))

    @cached_property
    def _own_lots(self) -> list[_Lot]:
        return self._lots(self.lanes)

    def _orders(self, epoch: int, lanes: range) -> Indices:
        return self._draw(epoch, lanes, self._own_lots)

    def _lots(self, lanes: range) -> list[_Lot]:
        """What `lanes` draw from each stream."""
        lane = np.arange(self.global_batch + 1)
        lengths = np.diff(lane * self.samples // self.global_batch)
        card = np.empty(self.global_batch, np.int64)  # the first draw of each lane
        card[np.argsort(-lengths, kind="stable")] = lane[:-1]
        lots, bound = [], 0
        for stream in self.streams:
            dealt = _dealt(bound + stream.draws, card) - _dealt(bound, card)
            bound += stream.draws
            lots.append(_lot(lanes, dealt, len(stream.members)))
        return lots

    def _draw(self, epoch: int, lanes: range, lots: list[_Lot]) -> Indices:
        """The order of `lanes`, (lanes, steps)."""
        counts = np.stack([lot.draws for lot in lots], axis=1)
        starts = np.cumsum(counts, axis=1) - counts
        drawn = np.full((len(lanes), self.steps), NONE)  # lane by lane, stream by stream
        for number, lot in enumerate(lots):
            rows = np.repeat(np.arange(len(lanes)), lot.draws)
            inside = _counting(lot.draws)
            drawn[rows, starts[rows, number] + inside] = self._pass(epoch, number, lot, inside)
        order = np.empty_like(drawn)
        # the draws of a stream keep their order, which is that of blocks to read
        turns = np.argsort(self._turns(epoch, lanes, counts), axis=1, kind="stable")
        np.put_along_axis(order, turns, drawn, axis=1)
        return order

    def _turns(self, epoch: int, lanes: range, counts: Indices) -> Indices:
        """The stream of each step of `lanes`, at random; where there is no step their number."""
        turns = np.full((len(lanes), self.steps), len(self.streams))
        lengths = counts.sum(axis=1)
        kinds = np.arange(len(self.streams))
        for length in np.unique(lengths).tolist():  # one, or two
            same = np.flatnonzero(lengths == length)
            some = np.repeat(np.tile(kinds, len(same)), counts[same].reshape(-1))
            key = [self.seed, epoch, STREAMS]
            order = shuffled(key, same + lanes.start, length, length)
            turns[same, :length] = np.take_along_axis(
                some.reshape(len(same), length), order, axis=1
            )
        return turns

    def _pass(self, epoch: int, number: int, lot: _Lot, inside: Indices) -> Indices:
        """The samples of a stream's draws, lane by lane."""
        stream = self.streams[number]
        draw = np.repeat(epoch * lot.each + lot.before, lot.draws) + inside
        members = np.repeat(lot.members, lot.draws)
        turn = draw // members
        where = draw - turn * members
        if self.shuffle:
            where = self._shuffled(
                number, np.repeat(lot.group, lot.draws) + lot.groups * turn, members, where
            )
        member = np.repeat(lot.first, lot.draws) + where
        if isinstance(stream.members, range):
            return member + stream.members.start
        return stream.members[member]

    def _shuffled(self, number: int, passes: Indices, members: Indices, where: Indices) -> Indices:
        """Where the order of its pass leads each draw; passes are permutations of their members."""
        draws = self.streams[number].draws
        block = max(1, (self.window or self.steps) * draws // self.samples)
        found = np.empty_like(where)
        for length in np.unique(members).tolist():
            same = np.flatnonzero(members == length)
            codes, row = np.unique(passes[same], return_inverse=True)
            depth = min(block, length) if self.window else length
            orders = shuffled([self.seed, PASSES, number], codes, length, depth)
            found[same] = orders[row, where[same]]
        return found

    def _window(self, orders: Indices, first: int, last: int, low: int) -> Window:
        wanted = orders[:, low:last]
        own = self.own if self.window is None else np.unique(wanted[wanted != NONE])
        starts, stops = _joined(own)
        shift = starts - (np.cumsum(stops - starts) - (stops - starts))  # sample - shift = row
        samples = np.ascontiguousarray(orders[:, first:last].T)
        rows = samples
        if len(starts):
            rows = samples - shift[np.searchsorted(starts, samples, side="right") - 1]
        steps = list(rows)
        if self.count(last - 1) < self.global_batch:
            steps[-1] = rows[-1][orders[:, last - 1] != NONE]
        pieces = zip(starts.tolist(), stops.tolist(), strict=True)
        return Window(first, last, tuple(pieces), tuple(steps))


def _joined(samples: Indices) -> tuple[Indices, Indices]:
    """Starts and stops of ranges with all of `samples`, which ascend.

    The samples of a small gap are read too: blocks that are half drawn in one go.
    """
    breaks = np.flatnonzero(np.diff(samples) > GAP)
    starts = samples[np.concatenate([np.arange(min(1, len(samples))), breaks + 1])]
    stops = samples[np.concatenate([breaks, np.arange(len(samples))[-1:]])] + 1
    return starts, stops


def _dealt(bound: int, card: Indices) -> Indices:
    """How many of the draws below `bound` each lane has: those `card`, card + lanes, ..."""
    return (bound + len(card) - 1 - card) // len(card)


def _counting(counts: Indices) -> Indices:
    """0, 1, ... for each of the counts, one after another."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _lot(lanes: range, dealt: Indices, size: int) -> _Lot:
    """The lot of `lanes` in a stream of `size` members, of which each lane has `dealt` draws."""
    count = len(dealt)
    width = -(-MEMBERS * count // size)  # lanes of a group
    width = min(count, 1 << (width - 1).bit_length())  # groups that end where ranks do, mostly
    groups = count // width
    lane = np.arange(lanes.start, lanes.stop)
    group = np.minimum(lane // width, groups - 1)
    low, high = group * width, np.where(group == groups - 1, count, (group + 1) * width)
    before = np.concatenate([[0], np.cumsum(dealt)])
    first, last = low * size // count, high * size // count
    return _Lot(
        draws=dealt[lanes.start : lanes.stop],
        group=group,
        groups=groups,
        before=before[lane] - before[low],
        each=before[high] - before[low],
        first=first,
        members=last - first,
    )
