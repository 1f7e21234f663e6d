"""Drawing from streams by shares: exact over an epoch, equal for any ranks, resumable."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mpidl.data.mixture import MixedSampler, Stream, apportion
from tests.data.test_sampler import replayed_by

SHARES = st.lists(st.floats(0.01, 10), min_size=1, max_size=5)


@given(SHARES, st.integers(0, 10_000))
def test_shares_are_exact_to_less_than_one(shares: list[float], total: int) -> None:
    counts = apportion(shares, total)
    assert sum(counts) == total
    for share, count in zip(shares, counts, strict=True):
        assert abs(count - share / sum(shares) * total) < 1 + 1e-6


@st.composite
def mixtures(draw: st.DrawFn) -> MixedSampler:
    """Streams of ranges and of scattered samples, some drawn more often than they have samples."""
    sizes = draw(st.lists(st.integers(1, 90), min_size=1, max_size=4))
    draws = [draw(st.integers(1, 120)) for _ in sizes]
    batch = draw(st.integers(1, sum(draws)))
    numbers = np.random.default_rng(draw(st.integers(0, 9))).permutation(sum(sizes) + 5)
    streams, start = [], 0
    for size, count in zip(sizes, draws, strict=True):
        scattered = np.sort(numbers[start : start + size])
        members = range(start, start + size) if draw(st.booleans()) else scattered
        streams.append(Stream(f"stream {start}", members, count))
        start += size
    return MixedSampler(
        sum(draws),
        batch,
        seed=draw(st.integers(0, 9)),
        shuffle=draw(st.booleans()),
        window=draw(st.one_of(st.none(), st.integers(1, 20))),
        streams=tuple(streams),
    )


def order_of(sampler: MixedSampler, epoch: int) -> list[np.ndarray]:
    lanes = [sampler.lane_order(epoch, lane) for lane in range(sampler.global_batch)]
    return [
        np.array([lane[step] for lane in lanes if step < len(lane)])
        for step in range(sampler.steps)
    ]


@given(mixtures(), st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_every_rank_count_draws_the_same_batches(
    sampler: MixedSampler, size: int, epoch: int
) -> None:
    assume(size <= sampler.global_batch)
    found, wanted = replayed_by(sampler, size, epoch), order_of(sampler, epoch)
    for step, (a, b) in enumerate(zip(found, wanted, strict=True)):
        np.testing.assert_array_equal(a, b)
        assert len(b) == sampler.count(step)


@given(mixtures(), st.integers(1, 4), st.data())
@settings(max_examples=30, deadline=None)
def test_a_resumed_epoch_continues_where_it_was(
    sampler: MixedSampler, size: int, data: st.DataObject
) -> None:
    assume(size <= sampler.global_batch)
    first = data.draw(st.integers(0, sampler.steps - 1))
    found = replayed_by(sampler, size, 1, first)
    for a, b in zip(found, order_of(sampler, 1)[first:], strict=True):
        np.testing.assert_array_equal(a, b)


@given(mixtures())
@settings(max_examples=30, deadline=None)
def test_every_epoch_draws_each_stream_as_often_as_it_says(sampler: MixedSampler) -> None:
    scattered = [np.asarray(stream.members) for stream in sampler.streams]
    assume(len(np.unique(np.concatenate(scattered))) == sum(map(len, scattered)))
    for epoch in range(2):
        drawn = np.concatenate(order_of(sampler, epoch))
        for stream, members in zip(sampler.streams, scattered, strict=True):
            assert np.isin(drawn, members).sum() == stream.draws


@given(st.integers(1, 60), st.integers(1, 200), st.integers(1, 12), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_samples_of_a_small_stream_are_drawn_equally_often(
    members: int, draws: int, batch: int, seed: int
) -> None:
    """Lanes that have too few samples of their own draw from one pool."""
    assume(batch <= draws)
    streams = (Stream("all", range(members), draws),)
    sampler = MixedSampler(draws, batch, seed=seed, streams=streams)
    seen: Counter[int] = Counter(dict.fromkeys(range(members), 0))
    for epoch in range(3):
        seen.update(np.concatenate(order_of(sampler, epoch)).tolist())
        assert max(seen.values()) - min(seen.values()) <= 1


def test_large_streams_are_drawn_evenly_and_ranks_read_their_own_part() -> None:
    streams = (Stream("a", range(8000), 7000), Stream("b", range(8000, 9000), 3000))
    counts = np.zeros(9000, int)
    for rank in range(4):
        sampler = MixedSampler(10_000, 32, rank, 4, streams=streams)
        assert len(sampler.own) <= 9000 / 4 + 100
        for epoch in range(4):
            for window in sampler.windows(epoch):
                held = np.concatenate([np.arange(*piece) for piece in window.pieces])
                np.add.at(counts, held[np.concatenate(window.rows)], 1)
    assert counts[:8000].sum() == 28_000 and counts[8000:].sum() == 12_000
    assert counts[:8000].min() >= 3 and counts[:8000].max() <= 4
    assert counts[8000:].min() >= 11 and counts[8000:].max() <= 13


def test_batches_are_mixed_and_epochs_differ() -> None:
    streams = (Stream("a", range(600), 500), Stream("b", range(600, 1200), 500))
    sampler = MixedSampler(1000, 50, seed=1, streams=streams)
    first, second = order_of(sampler, 0), order_of(sampler, 1)
    shares = [np.mean(batch < 600) for batch in first]
    assert min(shares) > 0.25 and max(shares) < 0.75
    assert not np.array_equal(first[0], second[0])


def test_windows_limit_what_is_held_and_read_blocks() -> None:
    streams = (Stream("a", range(50_000), 35_000), Stream("b", range(50_000, 60_000), 15_000))
    sampler = MixedSampler(50_000, 10, window=500, streams=streams)
    for window in sampler.windows(0):
        held = sum(stop - start for start, stop in window.pieces)
        assert held <= 2 * 10 * 500
        assert len(window.pieces) < held / 10, "mostly blocks"
