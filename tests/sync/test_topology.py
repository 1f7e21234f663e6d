"""Gossip's graphs: weights keep the mean; consensus comes at the rate of the spectral gap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpidl.errors import ConfigError
from mpidl.sync.topology import Graph, check_graph

KINDS = ["ring", "torus", "exponential", "random", "complete"]


@given(st.sampled_from(KINDS), st.integers(1, 24), st.integers(0, 9), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_nothing_is_made_or_lost(kind: str, size: int, step: int, seed: int) -> None:
    graph = Graph(kind, size, seed)
    matrix = graph.matrix(step)
    np.testing.assert_allclose(matrix.sum(axis=0), 1)  # what a rank gives away and keeps
    np.testing.assert_allclose(
        matrix.sum(axis=1), 1
    )  # what it has afterwards: the mean over ranks stays
    assert (matrix >= 0).all() and (np.diag(matrix) > 0).all()


@given(st.sampled_from(KINDS), st.integers(1, 12), st.integers(0, 5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_the_ranks_do_is_the_matrix(kind: str, size: int, step: int, directed: bool) -> None:
    """Every message that is sent is expected by its receiver, with the weight of the matrix."""
    graph = Graph(kind, size, 1, directed=directed)
    matrix, rebuilt = graph.matrix(step), np.zeros((size, size))
    plans = [graph.mixing(rank, step) for rank in range(size)]
    for rank, plan in enumerate(plans):
        rebuilt[rank, rank] = plan.own
        for to, weight in plan.sends:
            rebuilt[to, rank] = weight
            assert rank in plans[to].receives
        assert sum(rank in [to for to, _ in other.sends] for other in plans) == len(plan.receives)
    np.testing.assert_allclose(rebuilt, matrix)


def distance(x: np.ndarray) -> float:
    return float(np.linalg.norm(x - x.mean(axis=0)))


@pytest.mark.parametrize("size", [2, 3, 8, 16, 64, 256])
@pytest.mark.parametrize("kind", ["ring", "torus", "exponential", "complete"])
def test_consensus_shrinks_as_the_spectral_gap_says(kind: str, size: int) -> None:
    """At least at the predicted rate; in fixed symmetric graphs at exactly that rate."""
    graph, rng = Graph(kind, size), np.random.default_rng(0)
    rate, x = 1 - graph.spectral_gap(), rng.standard_normal((size, 4))
    start, steps = distance(x), 12 * graph.period
    matrices = [graph.matrix(step) for step in range(graph.period)]
    for step in range(steps):
        x = matrices[step % graph.period] @ x
    assert distance(x) <= start * rate**steps * 1.0001 + 1e-12
    if kind in ("ring", "torus") and size > 3:  # the slowest part alone is left after many steps
        eigenvalues, vectors = np.linalg.eigh(matrices[0])
        second = int(np.argsort(np.abs(eigenvalues))[-2])
        mode = vectors[:, second : second + 1]
        np.testing.assert_allclose(np.linalg.norm(matrices[0] @ mode), rate, rtol=1e-6)


@pytest.mark.parametrize("size", [8, 32, 128])
def test_random_matchings_reach_consensus_at_their_mean_square_rate(size: int) -> None:
    graph, squares = Graph("random", size), []
    rate, steps = 1 - graph.spectral_gap(), 5
    for seed in range(150):
        drawn = Graph("random", size, seed + 1)
        x = np.random.default_rng(seed).standard_normal((size, 1))
        start = distance(x)
        for step in range(steps):
            x = drawn.matrix(step) @ x
        squares.append((distance(x) / start) ** 2)
    assert np.mean(squares) == pytest.approx(rate ** (2 * steps), rel=0.2)


def test_powers_of_two_agree_exactly_after_one_period() -> None:
    graph, x = Graph("exponential", 16), np.arange(16.0)
    for step in range(graph.period):
        x = graph.matrix(step) @ x
    np.testing.assert_allclose(x, 7.5)
    assert graph.spectral_gap() == 1.0


@pytest.mark.parametrize("size", [4, 16, 64])
def test_push_sum_finds_the_mean_on_directed_graphs(size: int) -> None:
    """Ranks get more or less than they give; the weights correct for it (Kempe et al., 2003)."""
    graph, x, w = Graph("random", size, 3, directed=True), np.arange(float(size)), np.ones(size)
    for step in range(120):
        matrix = graph.matrix(step)
        x, w = matrix @ x, matrix @ w
    assert w.std() > 0.01
    np.testing.assert_allclose(x / w, (size - 1) / 2, rtol=1e-6)


def test_graphs_that_fall_apart_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"no path from rank 0 to rank 2(?s:.)*add an edge to rank 2"
    ):
        check_graph("custom", [[0, 1], [2, 3]])
    with pytest.raises(ConfigError, match="no path from rank 0 to rank 3"):
        check_graph("custom", [[0, 1], [1, 2]], size=4)
    with pytest.raises(ConfigError, match="there are 2 ranks"):
        check_graph("custom", [[0, 1], [1, 2]], size=2)
    with pytest.raises(ConfigError, match="edges"):
        check_graph("custom", [])
    with pytest.raises(ConfigError, match="a graph that has its own"):
        check_graph("ring", [[0, 1]])
    check_graph("custom", [[0, 1], [1, 2]], size=3)
    custom = Graph("custom", 3, edges=((0, 1), (1, 2)))
    assert 0 < custom.spectral_gap() < 1


@pytest.mark.parametrize("kind", ["ring", "torus", "exponential", "random", "complete"])
def test_long_runs_keep_no_more_than_a_few_steps(kind: str) -> None:
    """The weights of a step are worked out once for all ranks, and forgotten."""
    import tracemalloc

    from mpidl.sync import topology

    graph = Graph(kind, 64)
    for step in range(50):
        graph.mixing(3, step)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for step in range(50, 1500):
        graph.mixing(3, step)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 200_000 and topology._columns.cache_info().currsize <= topology.KEPT
