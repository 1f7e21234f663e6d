"""The scalars of a step are summed as its gradients are."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest

from mpidl.sync import StepScalars


@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 16])
def test_the_sum_does_not_depend_on_the_number_of_ranks(ranks: int) -> None:
    rng = np.random.default_rng(0)
    leaves = [StepScalars(loss, count=3) for loss in rng.lognormal(0, 9, 16)]
    each = len(leaves) // ranks
    own = [StepScalars.tree_sum(leaves[rank * each :][:each]) for rank in range(ranks)]
    total = StepScalars.tree_sum(own)
    assert total == StepScalars.tree_sum(leaves)
    assert total.count == 48 and total.loss == pytest.approx(sum(leaf.loss for leaf in leaves))


def test_sequential_sums_would_differ() -> None:
    """In double precision, or one after the other: so the order above is needed."""
    rng = np.random.default_rng(0)
    losses = rng.lognormal(0, 3, 1024).astype(np.float32)
    total = StepScalars.tree_sum([StepScalars(float(loss)) for loss in losses]).loss
    one_by_one = np.float32(0)
    for loss in losses:
        one_by_one += loss
    assert total != float(one_by_one)


def test_an_odd_number_of_leaves_loses_none() -> None:
    leaves = [StepScalars(*(float(1 << (2 * k)) for _ in range(5))) for k in range(7)]
    assert set(astuple(StepScalars.tree_sum(leaves))) == {float(sum(1 << 2 * k for k in range(7)))}
