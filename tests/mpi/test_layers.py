"""Statistics and masks that belong to all ranks: several ranks compute what one computes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from mpidl.backend.numpy_ops import NumpyOps
from mpidl.nn import BatchNorm, Dense, Dropout, Model
from mpidl.train.shared_state import SharedState

pytestmark = pytest.mark.mpi
TOTAL = 12


def split_rows(size: int, *, uneven: bool) -> list[slice]:
    """Rows for each rank; uneven: rank 0 has none."""
    edges = [0, *(TOTAL * (rank + 1) // size for rank in range(size))]
    if uneven and size > 1:
        edges[1] = 0
    return [slice(low, high) for low, high in pairwise(edges)]


@pytest.mark.parametrize("uneven", [False, True])
def test_synchronized_batch_norm_equals_one_rank(context: Any, uneven: bool) -> None:
    rng = np.random.default_rng(5)
    x, dy = rng.standard_normal((TOTAL, 4, 3)) + 2, rng.standard_normal((TOTAL, 4, 6))
    own = split_rows(context.size, uneven=uneven)[context.rank]
    results = []
    for rows, alone in ((slice(None), True), (own, False)):
        model = Model([Dense(6), BatchNorm(relu=True)], (4, 3), NumpyOps(), dtype=np.float64)
        model.parameters.initialize(2)
        shared = SharedState(model, context, 0)
        if alone:
            model.runtime.reduce = None
        shared.begin(0, 0, 1)
        y, back = model.forward(x[rows], train=True)
        back(dy[rows].copy(), None)
        gradients = model.parameters.gradients.copy()
        if not alone:
            context.comm.Allreduce(model.parameters.gradients.copy(), gradients)
        results.append((y.copy(), gradients, model.parameters.state.copy()))
    np.testing.assert_allclose(results[1][0], results[0][0][own], atol=1e-12)
    np.testing.assert_allclose(results[1][1], results[0][1], atol=1e-10)
    np.testing.assert_allclose(results[1][2], results[0][2], atol=1e-12)


def test_running_statistics_of_ranks_that_differ_are_averaged(context: Any) -> None:
    model = Model([BatchNorm(synchronized=False, momentum=1.0)], (3,), NumpyOps(), dtype=np.float64)
    model.parameters.initialize(0)
    shared = SharedState(model, context, 0)
    model.forward(np.full((4, 3), float(context.rank)), train=True)
    np.testing.assert_allclose(model.parameters.value("batch_norm1.running_mean"), context.rank)
    shared.synchronize()
    np.testing.assert_allclose(
        model.parameters.value("batch_norm1.running_mean"), (context.size - 1) / 2
    )


def test_masks_belong_to_micro_batches_not_to_ranks(context: Any) -> None:
    """The masks of all micro-batches are those that one rank draws."""
    if 4 % context.size:
        pytest.skip("four micro-batches are divided by 1, 2 or 4 ranks")
    x = np.ones((5, 8))
    masks = []
    for size, rank in ((1, 0), (context.size, context.rank)):
        model = Model([Dropout(0.5)], (8,), NumpyOps(), dtype=np.float64)
        shared = SharedState(model, context, 3)
        own = []
        for index in range(4 // size):
            shared.begin(7, index, 4 // size)
            model.runtime.micro_batch = rank * (4 // size) + index
            own.append(model.forward(x, train=True)[0].copy())
        masks.append(own)
    count = 4 // context.size
    wanted = masks[0][context.rank * count : (context.rank + 1) * count]
    np.testing.assert_array_equal(masks[1], wanted)
    assert not np.array_equal(masks[0][0], masks[0][1])
