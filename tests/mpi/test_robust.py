"""Robust aggregation over real ranks: equal results, wrong ranks, checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpidl.backend.numpy_ops import NumpyOps
from mpidl.nn import FlatParameters, ParameterSpec
from mpidl.sync import AllReduce, Robust, StepScalars, SynchronousStrategy
from mpidl.sync.synchronous.robust.aggregators import AGGREGATORS, Gradients

pytestmark = pytest.mark.mpi
LENGTH = 1003


def flat() -> FlatParameters:
    return FlatParameters([ParameterSpec("p", (LENGTH,))], NumpyOps())


def gradient_of(rank: int, step: int = 0) -> np.ndarray:
    """The mean gradient of a rank's samples."""
    truth = np.random.default_rng(step).standard_normal(LENGTH)
    noise = np.random.default_rng([step, rank, 1]).standard_normal(LENGTH)
    return (truth + 0.3 * noise).astype(np.float32)


def take(
    strategy: SynchronousStrategy, own: np.ndarray, rank: int, counts: list[int]
) -> tuple[np.ndarray, StepScalars]:
    """The gradients that the optimizer sees, and the sums."""
    parameters = strategy.parameters
    parameters.gradients[:LENGTH] = own * (counts[rank] / sum(counts))
    seen: list[np.ndarray] = []
    scalars = StepScalars(loss=float(rank + 1), count=counts[rank])
    sums = strategy.step(scalars, lambda: seen.append(parameters.gradients[:LENGTH].copy()))
    assert len(seen) == 1
    return seen[0], sums


@pytest.mark.parametrize("aggregate", list(AGGREGATORS))
def test_ranks_agree_on_what_one_process_would_compute(context: Any, aggregate: str) -> None:
    counts = [rank + 1 for rank in range(context.size)]
    options = Robust.Options(aggregate=aggregate, screen=0.0)
    strategy = Robust(flat(), context, options)
    found, sums = take(strategy, gradient_of(context.rank), context.rank, counts)
    rows = np.array([gradient_of(rank) for rank in range(context.size)])
    kind = AGGREGATORS[aggregate]
    whole = Gradients(
        rows, np.array(counts, float), kind.most_bad(context.size), lambda small: small
    )
    np.testing.assert_allclose(found, kind.combine(whole), atol=2e-5)
    assert sums.count == sum(counts) and sums.loss == sum(counts)
    every = context.comm.allgather(found.tobytes())
    assert len(set(every)) == 1


def test_the_mean_is_that_of_all_reduce(context: Any) -> None:
    counts = [3] * context.size
    robust = Robust(flat(), context, Robust.Options(aggregate="mean"))
    plain = AllReduce(flat(), context)
    own = gradient_of(context.rank)
    np.testing.assert_allclose(
        take(robust, own, context.rank, counts)[0],
        take(plain, own, context.rank, counts)[0],
        atol=1e-5,
    )


@pytest.mark.parametrize("wrong", ["flipped", "large", "nan", "zero"])
@pytest.mark.parametrize("aggregate", list(AGGREGATORS))
def test_a_wrong_rank_is_left_out(context: Any, aggregate: str, wrong: str) -> None:
    if context.size < 4:
        pytest.skip("three ranks that are right outvote one")
    strategy = Robust(flat(), context, Robust.Options(aggregate=aggregate, quarantine=3))
    counts, bad = [2] * context.size, 1
    for step in range(5):
        own = gradient_of(context.rank, step)
        if context.rank == bad and step < 4:
            own = {"flipped": -own, "large": 100 * own, "nan": own * np.nan, "zero": 0 * own}[wrong]
        found, sums = take(strategy, own, context.rank, counts)
        right = [gradient_of(r, step) for r in range(context.size) if r != bad]
        truth = np.mean(right, axis=0)
        assert np.linalg.norm(found - truth) < 0.3 * np.linalg.norm(truth)
        assert sums.count == 2 * (context.size - 1)
    report = strategy.report()
    assert report["quarantined_ranks"] == [bad] and report["excluded_steps"] == {bad: 3}
    again = Robust(flat(), context, Robust.Options(aggregate=aggregate))
    again.load_state(strategy.state())
    assert again.report()["quarantined_ranks"] == [bad]


def test_ranks_without_samples_do_not_count(context: Any) -> None:
    strategy = Robust(flat(), context, Robust.Options(aggregate="median"))
    counts = [4] + [0] * (context.size - 1)
    own = gradient_of(context.rank) if context.rank == 0 else np.zeros(LENGTH, np.float32)
    found, sums = take(strategy, own, context.rank, counts)
    np.testing.assert_allclose(found, gradient_of(0), atol=1e-6)
    assert sums.count == 4 and not strategy.screening.excluded.any()


def test_nobody_is_left_out_where_nothing_is_finite(context: Any) -> None:
    strategy = Robust(flat(), context, Robust.Options())
    own = np.full(LENGTH, np.inf, np.float32)
    found, sums = take(strategy, own, context.rank, [1] * context.size)
    assert not np.isfinite(found).all() and sums.count == context.size


def test_a_failed_rank_is_told_to_all(context: Any) -> None:
    strategy = Robust(flat(), context, Robust.Options())
    scalars = StepScalars(failed=float(context.rank == context.size - 1), count=1)
    sums = strategy.step(scalars, lambda: pytest.fail("no update"))
    assert sums.failed == 1
