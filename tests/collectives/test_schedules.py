"""Schedules proven in one process: exact results, least traffic, no deadlock."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial, reduce

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpidl.collectives.algorithms import ALL_GATHER, ALL_REDUCE, pairwise, tree
from mpidl.collectives.algorithms.hierarchical import fixed_order, hierarchical
from mpidl.collectives.algorithms.rabenseifner import rabenseifner
from mpidl.collectives.algorithms.recursive_doubling import recursive_doubling
from mpidl.collectives.algorithms.ring import reduce_scatter, ring
from mpidl.collectives.engine.reduction import OPERATIONS, tree_reduce
from mpidl.collectives.engine.simulate import simulate
from mpidl.collectives.schedule import Exchange, Round, block_range
from mpidl.errors import CollectiveError

DTYPES = [
    np.int32,
    np.int64,
    np.uint8,
    np.float16,
    ml_dtypes.bfloat16,
    np.float32,
    np.float64,
    np.complex64,
]
sizes, lengths, seeds = st.integers(1, 17), st.integers(0, 300), st.integers(0, 99)


def draw(size: int, length: int, dtype: type, seed: int, peak: int = 7) -> list[np.ndarray]:
    """Whole numbers so small that every order of adding them is exact in every dtype."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, peak, length).astype(dtype) for _ in range(size)]


def one_node(size: int) -> tuple[int, ...]:
    return (0,) * size


def total(buffers: list[np.ndarray]) -> np.ndarray:
    return np.sum([buffer.astype(np.complex128) for buffer in buffers], axis=0)


@given(st.sampled_from(sorted(ALL_REDUCE)), sizes, lengths, st.sampled_from(DTYPES), seeds)
@settings(max_examples=400, deadline=None)
def test_all_reduce_is_exact(
    algorithm: str, size: int, length: int, dtype: type, seed: int
) -> None:
    buffers = draw(size, length, dtype, seed)
    wanted = total(buffers)
    simulate(ALL_REDUCE[algorithm].make(one_node(len(buffers))), buffers)
    for buffer in buffers:
        np.testing.assert_array_equal(buffer.astype(np.complex128), wanted)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12), lengths, st.sampled_from(DTYPES), seeds
)
@settings(max_examples=200, deadline=None)
def test_hierarchical_is_exact_for_every_placement(
    places: list[int], length: int, dtype: type, seed: int
) -> None:
    order = {place: index for index, place in enumerate(dict.fromkeys(places))}
    nodes = tuple(order[place] for place in places)
    buffers = draw(len(nodes), length, dtype, seed)
    wanted = total(buffers)
    simulate(hierarchical(nodes), buffers)
    for buffer in buffers:
        np.testing.assert_array_equal(buffer.astype(np.complex128), wanted)


@given(
    st.sampled_from(sorted(ALL_REDUCE)), st.sampled_from(sorted(OPERATIONS)), sizes, lengths, seeds
)
@settings(max_examples=200, deadline=None)
def test_every_operation(algorithm: str, op: str, size: int, length: int, seed: int) -> None:
    buffers = draw(size, length, np.float64, seed, peak=3)
    wanted = reduce(OPERATIONS[op], buffers)
    simulate(ALL_REDUCE[algorithm].make(one_node(len(buffers))), buffers, op)
    for buffer in buffers:
        np.testing.assert_array_equal(buffer, wanted)


@pytest.mark.parametrize(
    "algorithm", [partial(ring, segment=5), partial(reduce_scatter, segment=5)]
)
@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_segments_change_nothing_but_the_number_of_rounds(algorithm: partial, size: int) -> None:
    buffers, again = draw(size, 103, np.float32, 1), draw(size, 103, np.float32, 1)
    small = simulate(algorithm, buffers)
    large = simulate(algorithm.func, again)
    assert small.bytes_sent == large.bytes_sent
    assert min(small.rounds) > max(large.rounds)
    for one, other in zip(buffers, again, strict=True):
        np.testing.assert_array_equal(one, other)


@given(sizes, lengths, seeds, st.data())
@settings(max_examples=100, deadline=None)
def test_rooted_collectives(size: int, length: int, seed: int, data: st.DataObject) -> None:
    root = data.draw(st.integers(0, size - 1))
    before = draw(size, length, np.int64, seed)
    mine = [block_range(rank, size, length) for rank in range(size)]

    def after(schedule: object) -> list[np.ndarray]:
        buffers = [buffer.copy() for buffer in before]
        simulate(partial(schedule, root=root), buffers)  # type: ignore[arg-type]
        return buffers

    np.testing.assert_array_equal(after(tree.reduce)[root], np.sum(before, axis=0))
    for buffer in after(tree.broadcast):
        np.testing.assert_array_equal(buffer, before[root])
    gathered = after(tree.gather)[root]
    scattered = after(tree.scatter)
    for rank, (low, high) in enumerate(mine):
        np.testing.assert_array_equal(gathered[low:high], before[rank][low:high])
        np.testing.assert_array_equal(scattered[rank][low:high], before[root][low:high])


@given(sizes, lengths, seeds)
@settings(max_examples=100, deadline=None)
def test_partitioned_collectives(size: int, length: int, seed: int) -> None:
    before = draw(size, length, np.int64, seed)
    whole = np.concatenate(
        [before[rank][slice(*block_range(rank, size, length))] for rank in range(size)]
    )
    for schedule in ALL_GATHER.values():
        buffers = [buffer.copy() for buffer in before]
        simulate(schedule, buffers)
        for buffer in buffers:
            np.testing.assert_array_equal(buffer, whole)
    for schedule in (reduce_scatter, pairwise.direct_reduce_scatter):
        buffers = [buffer.copy() for buffer in before]
        simulate(schedule, buffers)
        for rank, buffer in enumerate(buffers):
            low, high = block_range(rank, size, length)
            np.testing.assert_array_equal(buffer[low:high], np.sum(before, axis=0)[low:high])


@pytest.mark.parametrize("size", range(1, 10))
def test_all_to_all(size: int) -> None:
    buffers = [
        np.concatenate([100 * rank + np.arange(size), np.full(size, 100 * rank + rank)])
        for rank in range(size)
    ]
    simulate(pairwise.all_to_all, buffers)
    for rank, buffer in enumerate(buffers):
        np.testing.assert_array_equal(buffer[size:], 100 * np.arange(size) + rank)


@pytest.mark.parametrize("size", range(1, 18))
def test_bruck_and_the_barrier_take_the_fewest_rounds(size: int) -> None:
    wanted = math.ceil(math.log2(size))
    assert (
        simulate(pairwise.dissemination, [np.zeros(2, np.uint8) for _ in range(size)]).rounds
        == [wanted] * size
    )
    assert (
        max(simulate(pairwise.bruck, [np.zeros(size) for _ in range(size)]).rounds) <= 2 * wanted
    )  # parts may wrap around


@pytest.mark.parametrize("size", range(2, 65))
def test_the_ring_sends_the_least_possible(size: int) -> None:
    length = size * 12
    traffic = simulate(ring, [np.ones(length, np.float32) for _ in range(size)])
    assert traffic.bytes_sent == [2 * (size - 1) * length * 4 // size] * size
    assert traffic.rounds == [2 * (size - 1)] * size


@pytest.mark.parametrize("algorithm", sorted(ALL_REDUCE))
def test_all_ranks_end_with_the_same_bits(algorithm: str) -> None:
    rng = np.random.default_rng(0)
    buffers = [rng.standard_normal(101).astype(np.float32) for _ in range(7)]
    simulate(ALL_REDUCE[algorithm].make(one_node(len(buffers))), buffers)
    assert all(buffer.tobytes() == buffers[0].tobytes() for buffer in buffers)


@pytest.mark.parametrize(
    "nodes", [(0,) * 8, (0, 0, 1, 1, 2, 2, 3, 3), (0, 0, 0, 0, 1, 1, 1, 1), tuple(range(8))]
)
def test_algorithms_of_fixed_order_agree_to_the_last_bit(nodes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal(101).astype(np.float32) for _ in range(8)]
    wanted = tree_reduce(parts, "sum")
    fixed = fixed_order(nodes)
    assert fixed is not None
    for algorithm in (rabenseifner, recursive_doubling, fixed):
        buffers = [part.copy() for part in parts]
        simulate(algorithm, buffers)
        assert all(buffer.tobytes() == wanted.tobytes() for buffer in buffers)


def test_uneven_or_interleaved_nodes_have_no_fixed_order() -> None:
    assert fixed_order((0, 0, 0, 1)) is None
    assert fixed_order((0, 1, 0, 1)) is None


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_sixteen_bit_floats_are_rounded_once(dtype: type) -> None:
    rng = np.random.default_rng(3)
    buffers = [rng.standard_normal(64).astype(dtype) for _ in range(16)]
    wanted = np.sum([buffer.astype(np.float64) for buffer in buffers], axis=0)
    once, hops = [buffer.copy() for buffer in buffers], [buffer.copy() for buffer in buffers]
    simulate(pairwise.direct, once)
    simulate(ring, hops)
    half_step = np.spacing(np.abs(wanted).astype(dtype)).astype(np.float64) / 2
    assert (np.abs(once[0].astype(np.float64) - wanted) <= half_step * 1.01).all()
    assert (
        np.abs(hops[0].astype(np.float64) - wanted).max()
        > np.abs(once[0].astype(np.float64) - wanted).max()
    )


def broken(step: Exchange) -> Iterator[Round]:
    yield step


def test_the_simulator_finds_a_deadlock() -> None:
    with pytest.raises(CollectiveError, match="deadlock"):
        simulate(
            lambda rank, size, n: broken(Exchange(0, (0, 0), 1 - rank, (0, n), True)),
            [np.zeros(4), np.zeros(4)],
        )


def test_the_simulator_finds_a_message_that_nobody_receives() -> None:
    with pytest.raises(CollectiveError, match="never received"):
        simulate(
            lambda rank, size, n: broken(Exchange(1 - rank, (0, n), 0, (0, 0), True)),
            [np.zeros(4), np.zeros(4)],
        )


def test_the_simulator_finds_a_wrong_length() -> None:
    with pytest.raises(CollectiveError, match="elements where"):
        simulate(
            lambda rank, size, n: broken(Exchange(1 - rank, (0, 2), 1 - rank, (0, 3), True)),
            [np.zeros(4), np.zeros(4)],
        )
