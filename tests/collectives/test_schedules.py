"""Schedules proven in one process: exact results, least traffic, no deadlock, nothing left unreceived."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpidl.collectives.api import ALL_REDUCE
from mpidl.collectives.ring import ring
from mpidl.collectives.schedule import Exchange, Round
from mpidl.collectives.simulate import simulate
from mpidl.errors import CollectiveError


@given(
    st.sampled_from(sorted(ALL_REDUCE)),
    st.integers(1, 17),
    st.integers(0, 300),
    st.sampled_from([np.int32, np.int64, np.float32, np.float64]),
    st.integers(0, 99),
)
@settings(max_examples=200, deadline=None)
def test_all_reduce_is_exact(algorithm: str, size: int, length: int, dtype: type, seed: int) -> None:
    rng = np.random.default_rng(seed)
    buffers = [rng.integers(-1000, 1000, length).astype(dtype) for _ in range(size)]  # whole numbers: every order is exact
    wanted = np.sum([buffer.astype(np.float64) for buffer in buffers], axis=0)
    simulate(ALL_REDUCE[algorithm], buffers)
    for buffer in buffers:
        np.testing.assert_array_equal(buffer, wanted)


@pytest.mark.parametrize("size", range(2, 65))
def test_the_ring_sends_the_least_possible(size: int) -> None:
    length = size * 12
    traffic = simulate(ring, [np.ones(length, np.float32) for _ in range(size)])
    assert traffic.bytes_sent == [2 * (size - 1) * length * 4 // size] * size
    assert traffic.rounds == [2 * (size - 1)] * size


def test_all_ranks_end_with_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    buffers = [rng.standard_normal(101).astype(np.float32) for _ in range(7)]
    simulate(ring, buffers)
    assert all(buffer.tobytes() == buffers[0].tobytes() for buffer in buffers)


def broken(step: Exchange) -> Iterator[Round]:
    yield step


def test_the_simulator_finds_a_deadlock() -> None:
    with pytest.raises(CollectiveError, match="deadlock"):
        simulate(lambda rank, size, n: broken(Exchange(0, (0, 0), 1 - rank, (0, n), True)), [np.zeros(4), np.zeros(4)])


def test_the_simulator_finds_a_message_that_nobody_receives() -> None:
    with pytest.raises(CollectiveError, match="never received"):
        simulate(lambda rank, size, n: broken(Exchange(1 - rank, (0, n), 0, (0, 0), True)), [np.zeros(4), np.zeros(4)])


def test_the_simulator_finds_a_wrong_length() -> None:
    with pytest.raises(CollectiveError, match="elements where"):
        simulate(lambda rank, size, n: broken(Exchange(1 - rank, (0, 2), 1 - rank, (0, 3), True)), [np.zeros(4), np.zeros(4)])
