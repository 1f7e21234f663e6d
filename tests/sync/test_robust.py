"""Aggregates of gradients and who is an outlier, against references in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidl.errors import ConfigError
from mpidl.sync import Robust, RunInfo
from mpidl.sync.synchronous.robust.aggregators import (
    AGGREGATORS,
    Gradients,
    comparisons,
    pairwise_distances,
    sort_columns,
)
from mpidl.sync.synchronous.robust.screening import Screening


def gradients(rows: Any, bad: int = 0, weights: Any = None) -> Gradients:
    made = np.asarray(rows, np.float64)
    own = np.ones(len(made)) if weights is None else np.asarray(weights, float)
    return Gradients(made, own, bad, lambda small: small)


def honest(count: int, length: int = 200, seed: int = 0, spread: float = 0.3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    truth: np.ndarray = rng.standard_normal(length) + spread * rng.standard_normal((count, length))
    return truth


@pytest.mark.parametrize("count", range(1, 20))
def test_the_network_sorts(count: int) -> None:
    pairs = list(comparisons(count))
    assert all(0 <= i < j < count for i, j in pairs)
    rows = np.random.default_rng(count).integers(0, 9, (count, 3000)).astype(np.float32)
    wanted = np.sort(rows, axis=0)
    sort_columns(rows)
    np.testing.assert_array_equal(rows, wanted)


@given(st.integers(1, 9), st.integers(1, 40), st.data())
def test_median_and_trimmed_mean(count: int, length: int, data: st.DataObject) -> None:
    rows = np.random.default_rng(count * 99 + length).standard_normal((count, length))
    bad = data.draw(st.integers(0, (count - 1) // 2))
    found = AGGREGATORS["median"].combine(gradients(rows))
    np.testing.assert_allclose(found, np.median(rows, axis=0), atol=1e-12)
    ordered = np.sort(rows, axis=0)[bad : count - bad]
    found = AGGREGATORS["trimmed_mean"].combine(gradients(rows, bad))
    np.testing.assert_allclose(found, ordered.mean(axis=0), atol=1e-12)


def test_the_mean_counts_samples() -> None:
    found = AGGREGATORS["mean"].combine(gradients([[1.0], [4.0]], weights=[2, 1]))
    np.testing.assert_allclose(found, [2.0])


def test_distances_and_krum() -> None:
    rows = honest(7)
    rows[2] *= -3
    found = pairwise_distances(gradients(rows))
    wanted = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)
    # scores by the definition of Blanchard et al.: the count - bad - 2 nearest others
    bad = 2
    scores = np.array(
        [np.sort(np.delete(row, i))[: 7 - bad - 2].sum() for i, row in enumerate(wanted)]
    )
    chosen = np.argsort(scores)[: 7 - bad]
    assert 2 not in chosen
    found = AGGREGATORS["krum"].combine(gradients(rows, bad))
    np.testing.assert_allclose(found, rows[chosen].mean(axis=0), atol=1e-12)


def test_the_geometric_median_has_the_least_sum_of_distances() -> None:
    rows = honest(6, length=5, spread=2.0)

    def total(point: np.ndarray) -> float:
        return float(np.sqrt(((rows - point) ** 2).sum(axis=1)).sum())

    found = AGGREGATORS["geometric_median"].combine(gradients(rows))
    rng = np.random.default_rng(1)
    for size in (0.3, 0.1):
        for _ in range(200):
            assert total(found) <= total(found + size * rng.standard_normal(5)) + 1e-9
    assert total(found) < total(rows.mean(axis=0))


@pytest.mark.parametrize("name", [name for name in AGGREGATORS if name != "mean"])
@pytest.mark.parametrize("attack", ["flipped", "large", "noise", "zero", "equal"])
@pytest.mark.parametrize("count", [5, 8, 11])
def test_as_many_as_promised_may_be_arbitrary(name: str, attack: str, count: int) -> None:
    rows = honest(count, seed=count)
    truth, rng = rows.mean(axis=0), np.random.default_rng(2)
    bad = AGGREGATORS[name].most_bad(count)
    assert bad >= 1
    rows[:bad] = {
        "flipped": lambda: -rows[:bad],
        "large": lambda: 1e6 * rows[:bad],
        "noise": lambda: 1e3 * rng.standard_normal((bad, rows.shape[1])),
        "zero": lambda: np.zeros_like(rows[:bad]),
        "equal": lambda: np.full_like(rows[:bad], 1e9),
    }[attack]()
    found = AGGREGATORS[name].combine(gradients(rows, bad))
    cosine = found @ truth / np.linalg.norm(found) / np.linalg.norm(truth)
    assert cosine > 0.75 and np.linalg.norm(found) < 2 * np.linalg.norm(truth)


@pytest.mark.parametrize(
    ("name", "ranks", "most"),
    [("mean", 9, 0), ("median", 4, 1), ("median", 5, 2), ("krum", 4, 0), ("krum", 5, 1),
     ("trimmed_mean", 1, 0)],
)  # fmt: skip
def test_what_cannot_be_tolerated_is_refused(name: str, ranks: int, most: int) -> None:
    assert AGGREGATORS[name].most_bad(ranks) == most
    Robust.check(Robust.Options(aggregate=name, tolerate=most), RunInfo(ranks=ranks))
    with pytest.raises(ConfigError, match="tolerates"):
        Robust.check(Robust.Options(aggregate=name, tolerate=most + 1), RunInfo(ranks=ranks))


def test_norms_and_directions() -> None:
    made, everybody = Screening(4, 6.0, 0), np.ones(4, bool)
    assert made.usual_norms(np.array([1.0, 1.2, 0.9, 1.1]), everybody).all()
    for wrong in (1e4, 1e-9, 0.0, np.nan, np.inf):
        found = made.usual_norms(np.array([1.0, wrong, 0.9, 1.1]), everybody)
        np.testing.assert_array_equal(found, [True, False, True, True])
    found = made.usual_directions(np.array([0.9, 0.85, -0.9, 0.95]), everybody)
    np.testing.assert_array_equal(found, [True, True, False, True])
    # noise: directions that scatter are nobody's fault
    assert made.usual_directions(np.array([0.4, -0.1, 0.1, 0.2]), everybody).all()
    # two ranks: nobody knows which is wrong
    assert Screening(2, 6.0, 0).usual_norms(np.array([1.0, 1e9]), np.ones(2, bool)).all()
    off = Screening(4, 0.0, 0)
    np.testing.assert_array_equal(
        off.usual_norms(np.array([1, 1e9, np.nan, 1]), everybody), [True, True, False, True]
    )


def test_quarantine_needs_an_unbroken_row_and_leaves_a_majority() -> None:
    made, everybody = Screening(5, 6.0, 3), np.ones(5, bool)
    out = np.array([False, True, True, True, True])  # rank 0 is out
    assert made.note(everybody, out) == made.note(everybody, out) == []
    assert made.note(everybody, everybody) == []
    assert [made.note(everybody, out) for _ in range(3)] == [[], [], [0]]
    three = np.array([False, False, False, True, True])
    found = [made.note(everybody, three) for _ in range(4)]
    assert found == [[], [], [1], []] and made.quarantined.sum() == 2
    again = Screening(5, 6.0, 3)
    again.load_state(made.state())
    np.testing.assert_array_equal(again.quarantined, made.quarantined)
    np.testing.assert_array_equal(again.excluded, [9, 4, 4, 0, 0])
    fewer = Screening(3, 6.0, 3)
    fewer.load_state(made.state())
    assert not fewer.quarantined.any()
