"""The fixed tree: any number of ranks that divides the micro-batches computes the same bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpidl.backend.numpy_ops import NumpyOps
from mpidl.collectives.algorithms.rabenseifner import rabenseifner
from mpidl.collectives.engine.simulate import simulate
from mpidl.data.sampler import LaneSampler
from mpidl.nn import FlatParameters, ParameterSpec
from mpidl.sync import RunInfo
from mpidl.train.accumulation import TreeSum


def exact(micro_batches: int, ranks: int) -> bool:
    return RunInfo(ranks=ranks, micro_batches=micro_batches).exact


def tree_total(leaves: np.ndarray, size: int) -> np.ndarray:
    """The sum of all leaves as `size` ranks compute it: each its own, then the all-reduce."""
    messages = []
    for own in np.split(leaves, size):
        flat = FlatParameters([ParameterSpec("w", (leaves.shape[1],))], NumpyOps(), spare=0)
        tree = TreeSum(flat, len(own))
        for leaf in own:
            flat.message[: leaves.shape[1]] = leaf
            tree.add()
        messages.append(flat.message.copy())
    simulate(rabenseifner, messages)
    assert all(message.tobytes() == messages[0].tobytes() for message in messages)
    return messages[0][: leaves.shape[1]]


@pytest.mark.parametrize("count", [1, 2, 4, 8, 16])
def test_the_sum_does_not_depend_on_the_ranks(count: int, rng: np.random.Generator) -> None:
    leaves = rng.standard_normal((count, 101)).astype(np.float32) * 10.0 ** rng.integers(
        -3, 3, (count, 1)
    )
    leaves = leaves.astype(np.float32)
    results = [tree_total(leaves, size) for size in (1, 2, 4, 8, 16) if exact(count, size)]
    assert all(result.tobytes() == results[0].tobytes() for result in results)
    np.testing.assert_allclose(
        results[0], leaves.astype(np.float64).sum(axis=0), rtol=1e-4, atol=1e-3
    )


def test_an_unfinished_step_is_forgotten() -> None:
    flat = FlatParameters([ParameterSpec("w", (16,))], NumpyOps(), spare=0)
    tree = TreeSum(flat, 2)
    flat.message[:] = 5
    tree.add()
    tree.reset()
    for value in (1, 2):
        flat.message[:] = value
        tree.add()
    assert (flat.message == 3).all()


@given(st.integers(16, 200), st.integers(16, 64), st.sampled_from([1, 2, 4, 8, 16]))
@settings(max_examples=60, deadline=None)
def test_the_cuts_are_between_the_same_lanes_for_every_rank_count(
    samples: int, batch: int, parts: int
) -> None:
    if samples < batch:
        return
    for step in (0, (samples - 1) // batch):
        wanted: list[int] | None = None
        for size in (1, 2, 4, 8, 16):
            if parts % size:
                continue
            counts: list[int] = []
            for rank in range(size):
                cuts = LaneSampler(samples, batch, rank, size).cuts(step, parts)
                assert cuts[0] == 0
                counts += list(np.diff(cuts))
            assert wanted is None or counts == wanted
            wanted = counts
        assert (
            wanted is not None
            and sum(wanted) == LaneSampler(samples, batch).count(step)
            and len(wanted) == parts
        )


def test_ranks_that_do_not_divide_take_their_part_whole() -> None:
    assert [LaneSampler(100, 32, rank, 3).cuts(0, 4) for rank in range(3)] == [
        [0, 10],
        [0, 11],
        [0, 11],
    ]
    assert not exact(4, 3) and not exact(4, 8) and exact(8, 4)


def test_a_dense_layer_computed_in_parts_gives_the_same_bits(rng: np.random.Generator) -> None:
    """Rows of a product must not depend on their number: our kernel promises that."""
    ops = NumpyOps()
    if ops.level == "none":
        pytest.skip("the C kernels were not built")
    x, w, b = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((64, 300), (300, 50), (50,))
    )
    whole, parts = np.empty((64, 50), np.float32), np.empty((64, 50), np.float32)
    ops.dense_forward(x, w, b, whole, relu=True)
    for low, high in ((0, 5), (5, 32), (32, 64)):
        ops.dense_forward(x[low:high], w, b, parts[low:high], relu=True)
    assert whole.tobytes() == parts.tobytes()
