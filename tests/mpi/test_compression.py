"""Compressed exchange over MPI: what is left out comes later; all ranks get the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpidl.collectives import Group
from mpidl.compression import COMPRESSORS, create
from mpidl.errors import CollectiveError

pytestmark = pytest.mark.mpi
LENGTH, STEPS = 5000, 60


@pytest.fixture
def group(context: Any) -> Any:
    made = Group(context.comm, name="compression")
    yield made
    made.free()


@pytest.mark.parametrize("name", sorted(COMPRESSORS))
def test_with_error_feedback_nothing_is_lost(context: Any, group: Any, name: str) -> None:
    options = {"topk": {"ratio": 0.1}, "powersgd": {"rank": 8}}.get(name, {})
    compressor = create(name, seed=1, **options)
    fixed = [
        np.random.default_rng([7, rank]).standard_normal(LENGTH).astype(np.float32)
        for rank in range(context.size)
    ]
    received, given = np.zeros(LENGTH), np.zeros(LENGTH)
    for step in range(STEPS):
        parts = [
            fixed[rank]
            + np.random.default_rng([step, rank]).standard_normal(LENGTH).astype(np.float32) / 9
            for rank in range(context.size)
        ]
        values = parts[context.rank].copy()
        compressor.reduce(values, group, "bucket 0")
        received += values
        given += np.sum(parts, axis=0)
    error = np.linalg.norm(received - given) / np.linalg.norm(given)
    assert error < {"fp16": 1e-3, "bf16": 5e-3, "int8": 5e-3}.get(name, 0.35), error
    assert len(set(context.allgather_object(received.tobytes(), bytes))) == 1


@pytest.mark.parametrize("name", COMPRESSORS)
def test_bytes_on_the_wire(context: Any, group: Any, name: str) -> None:
    if context.size == 1:
        return
    known = {"fp16": 1.99, "bf16": 1.99, "int8": 3.9, "sign": 25, "topk": 45, "powersgd": 20}
    least = known.get(name, 1.01)
    length = 1 << 20
    compressor = create(name)
    compressor.reduce(np.ones(length, np.float32), group, "b")
    plain = 2 * (context.size - 1) * length * 4 / context.size
    wanted = (
        least if name != "topk" else least * 2 / context.size
    )  # every rank's pairs go to all the others
    assert plain / compressor.sent > wanted, plain / compressor.sent


def test_a_value_that_is_not_finite_shows_and_is_not_kept(context: Any, group: Any) -> None:
    compressor = create("int8")
    for step in range(3):
        values = np.ones(3000, np.float32)
        if step == 0 and context.rank == 0:
            values[5] = np.nan
        compressor.reduce(values, group, "b")
        assert bool(np.isfinite(values).all()) == (step > 0)


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_the_long_run_mean_of_16_bit_sums_is_unbiased(context: Any, group: Any, name: str) -> None:
    """The rounding of the sum is made good as well as that of each rank's values.

    What comes out in N steps is off by one rounding, not by N of them.
    """
    compressor = create(name)
    step = {"fp16": 2.0**-10, "bf16": 2.0**-7}[name]
    given = (1 + step * np.linspace(0.05, 0.95, LENGTH) * (1 + context.rank)).astype(np.float32)
    wanted = np.sum(context.allgather_object(given.astype(np.float64), np.ndarray), axis=0)
    received, steps = np.zeros(LENGTH), 200
    for _ in range(steps):
        values = given.copy()
        compressor.reduce(values, group, "bucket")
        received += values
    assert len(set(context.allgather_object(received.tobytes(), bytes))) == 1
    error = np.abs(received / steps - wanted).max()
    assert error < 4 * context.size * step / steps, error


def test_a_sum_that_float16_cannot_hold_ends_the_run(context: Any, group: Any) -> None:
    if context.size < 2:
        return
    values = np.ones(5000, np.float32)
    values[77] = 60000
    with pytest.raises(
        CollectiveError, match=r"bucket 3: float16 overflow.*element 77; rank 0 brought .* 60000"
    ):
        create("fp16").reduce(values, group, "bucket 3")
    values[77] = np.inf if context.rank == 0 else 1
    create("fp16").reduce(values, group, "bucket 3")  # was infinite before: passes through
    assert np.isinf(values[77]) and np.isfinite(values).sum() == 4999
