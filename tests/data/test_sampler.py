"""The order of samples: a permutation, the same for any number of ranks, local to each rank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mpidl.data.sampler import LaneSampler, contiguous_batches
from mpidl.errors import DataError


def sample_order(sampler: LaneSampler, epoch: int) -> list[np.ndarray]:
    """All batches of an epoch over all ranks, as arrays of sample numbers."""
    orders = [sampler.lane_order(epoch, lane) for lane in range(sampler.global_batch)]
    return [
        np.array([order[step] for order in orders if step < len(order)])
        for step in range(sampler.steps)
    ]


@st.composite
def samplers(draw: st.DrawFn) -> LaneSampler:
    samples = draw(st.integers(1, 400))
    batch = draw(st.integers(1, samples))
    window = draw(st.one_of(st.none(), st.integers(1, 20)))
    return LaneSampler(
        samples, batch, seed=draw(st.integers(0, 9)), shuffle=draw(st.booleans()), window=window
    )


def replayed(sampler: LaneSampler, size: int, epoch: int, first_step: int = 0) -> list[np.ndarray]:
    """The batches as the ranks together would read them, through windows, pieces and rows."""
    batches: dict[int, list[np.ndarray]] = {}
    for rank in range(size):
        own = LaneSampler(
            sampler.samples,
            sampler.global_batch,
            rank,
            size,
            sampler.seed,
            sampler.shuffle,
            sampler.window,
        )
        low, high = own.owned_range
        for window in own.windows(epoch, first_step):
            held = np.concatenate(
                [np.empty(0, int), *(np.arange(*piece) for piece in window.pieces)]
            )
            assert ((held >= low) & (held < high)).all(), "a rank reads only what it owns"
            for step, rows in enumerate(window.rows, window.first_step):
                batches.setdefault(step, []).append(held[rows])
    return [np.concatenate(batches[step]) for step in sorted(batches)]


@given(samplers(), st.integers(1, 9), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_every_rank_count_sees_the_same_batches(
    sampler: LaneSampler, size: int, epoch: int
) -> None:
    assume(size <= sampler.global_batch)
    wanted = sample_order(sampler, epoch)
    found = replayed(sampler, size, epoch)
    assert len(found) == len(wanted) == sampler.steps
    for step, (a, b) in enumerate(zip(found, wanted, strict=True)):
        np.testing.assert_array_equal(a, b)
        assert len(b) == sampler.count(step)
    np.testing.assert_array_equal(np.sort(np.concatenate(wanted)), np.arange(sampler.samples))


@given(samplers(), st.integers(1, 4), st.data())
@settings(max_examples=100, deadline=None)
def test_a_resumed_epoch_continues_where_it_was(
    sampler: LaneSampler, size: int, data: st.DataObject
) -> None:
    assume(size <= sampler.global_batch)
    first = data.draw(st.integers(0, sampler.steps - 1))
    for a, b in zip(
        replayed(sampler, size, 1, first), sample_order(sampler, 1)[first:], strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_epochs_and_seeds_differ() -> None:
    one, two = LaneSampler(1000, 10, seed=1), LaneSampler(1000, 10, seed=2)
    orders = [np.concatenate(sample_order(s, e)) for s, e in ((one, 0), (one, 1), (two, 0))]
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[0], orders[2])


def test_the_shuffle_is_uniform_within_a_lane() -> None:
    counts = np.zeros((8, 8))
    for epoch in range(4000):
        counts[np.arange(8), LaneSampler(16, 2).lane_order(epoch, 0)] += 1
    expected = 4000 / 8
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 49 + 6 * np.sqrt(2 * 49)


def test_windows_limit_what_is_held() -> None:
    sampler = LaneSampler(10_000, 10, window=50)
    for window in sampler.windows(0):
        assert sum(stop - start for start, stop in window.pieces) <= 10 * 50
        assert len(window.pieces) <= 20


def test_too_few_samples_or_too_many_ranks() -> None:
    with pytest.raises(DataError, match="too few"):
        LaneSampler(5, 6)
    with pytest.raises(DataError, match="too small for 8 ranks"):
        LaneSampler(100, 4, 0, 8)


@given(st.integers(0, 100), st.integers(1, 9), st.integers(1, 20))
def test_evaluation_sees_each_sample_once(samples: int, size: int, batch: int) -> None:
    pieces = [
        piece for rank in range(size) for piece in contiguous_batches(samples, rank, size, batch)
    ]
    assert [i for piece in pieces for i in range(*piece)] == list(range(samples))
    assert all(0 < stop - start <= batch for start, stop in pieces)
