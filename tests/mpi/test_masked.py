"""Sums under masks: what comes out, and what a message shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpidl.backend.numpy_ops import NumpyOps
from mpidl.collectives import Group
from mpidl.errors import ConfigError
from mpidl.nn import FlatParameters, ParameterSpec
from mpidl.sync import AllReduce, RunInfo, StepScalars
from mpidl.sync.synchronous.allreduce import masked
from mpidl.sync.synchronous.allreduce.masked import MaskedSum

pytestmark = pytest.mark.mpi
LENGTH = 150_001


@pytest.fixture
def group(context: Any) -> Any:
    made = Group(context.comm, name="masked")
    yield made
    made.free()


def part_of(rank: int, step: int = 0) -> np.ndarray:
    return np.random.default_rng([rank, step]).standard_normal(LENGTH).astype(np.float32)


def test_sums_are_exact_but_for_31_bits(context: Any, group: Any) -> None:
    made = MaskedSum(group)
    for step in range(3):
        values = part_of(context.rank, step)
        made.reduce(values, group, "b")
        parts = [part_of(rank, step) for rank in range(context.size)]
        peak = max(np.abs(part).max() for part in parts)
        wanted = np.sum(np.array(parts, np.float64), axis=0)
        assert np.abs(values - wanted).max() <= 2 * context.size**2 * peak / 2**31 + 1e-6
        assert len(set(context.comm.allgather(values.tobytes()))) == 1


@pytest.mark.parametrize("value", [0.0, 3e38, -3e38, 1e-40])
def test_the_ends_of_the_range(context: Any, group: Any, value: float) -> None:
    values = np.full(1000, value / context.size, np.float32)
    MaskedSum(group).reduce(values, group, "b")
    np.testing.assert_allclose(values, value, rtol=1e-6, atol=1e-44)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_shows_on_all_ranks(context: Any, group: Any, value: float) -> None:
    values = np.ones(1000, np.float32)
    if context.rank == context.size - 1:
        values[3] = value
    made = MaskedSum(group)
    made.reduce(values, group, "b")
    assert np.isnan(values).all()
    values = np.ones(1000, np.float32)
    made.reduce(values, group, "b")
    np.testing.assert_allclose(values, context.size, rtol=1e-6)


def test_what_is_sent_shows_nothing(
    context: Any, group: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words that leave a rank are random, new in every step, and masks cancel only in sum."""
    if context.size == 1:
        pytest.skip("one rank sends nothing")
    sent: list[np.ndarray] = []
    plain = masked.all_reduce

    def spy(buffer: Any, **options: Any) -> None:
        if buffer.dtype == np.uint32:
            sent.append(buffer.copy())
        plain(buffer, **options)

    monkeypatch.setattr(masked, "all_reduce", spy)
    made = MaskedSum(group)
    for _ in range(2):
        values = np.full(LENGTH, 0.25 * (context.rank + 1), np.float32)
        made.reduce(values, group, "b")
    for words in sent:
        ones = np.unpackbits(words.view(np.uint8)).mean()
        assert abs(ones - 0.5) < 5 * 0.5 / np.sqrt(32 * LENGTH)
        assert len(np.unique(words)) > 0.99 * LENGTH
    assert (sent[0] != sent[1]).mean() > 0.99
    whole = np.array(context.comm.allgather(sent[0])).sum(axis=0, dtype=np.uint32)
    assert len(np.unique(whole)) == 1
    if context.size > 2:  # without one rank nothing cancels
        some = np.array(context.comm.allgather(sent[0]))[1:].sum(axis=0, dtype=np.uint32)
        assert len(np.unique(some)) > 0.99 * LENGTH


def test_a_run_of_all_reduce(context: Any) -> None:
    def gradients(options: AllReduce.Options) -> np.ndarray:
        parameters = FlatParameters([ParameterSpec("p", (LENGTH,))], NumpyOps())
        strategy = AllReduce(parameters, context, options)
        parameters.gradients[:LENGTH] = part_of(context.rank)
        strategy.on_gradients_ready(0, parameters.length)
        sums = strategy.step(StepScalars(loss=1.0, count=2), lambda: None)
        assert sums.loss == context.size and strategy.report()["sent_bytes"] >= 0
        found: np.ndarray = parameters.gradients[:LENGTH].copy()
        return found

    for overlap in ("off", "layers"):
        found = gradients(AllReduce.Options(masked=True, overlap=overlap))
        np.testing.assert_allclose(found, gradients(AllReduce.Options()), atol=1e-6)


def test_what_would_show_more_is_refused() -> None:
    with pytest.raises(ConfigError, match="masks"):
        AllReduce.check(AllReduce.Options(masked=True, noise_scale=True), RunInfo())
