"""Losses between a model and its teacher: against NumPy in float64, and central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpidl.backend.numpy_ops import NumpyOps
from mpidl.nn import BCEWithLogitsLoss, CrossEntropy, Loss, MSELoss
from mpidl.task import TASKS
from mpidl.task.distill import DistilledLoss, SoftClasses, SoftLabels, SoftLoss, SoftValues

OPS = NumpyOps(1)


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(axis=-1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=-1, keepdims=True)))


def classes(x: np.ndarray, t: np.ndarray, y: np.ndarray, temperature: float) -> np.ndarray:
    own, other = log_softmax(x / temperature), log_softmax(t / temperature)
    each = (np.exp(other) * (other - own)).sum(axis=-1) * (np.asarray(y) >= 0)
    return np.asarray(temperature**2 * each.reshape(len(x), -1).mean(axis=1))


def labels(x: np.ndarray, t: np.ndarray, y: np.ndarray, temperature: float) -> np.ndarray:
    pairs = [np.stack((z, np.zeros_like(z)), axis=-1) / temperature for z in (x, t)]
    own, other = (log_softmax(pair) for pair in pairs)
    each = (np.exp(other) * (other - own)).sum(axis=-1)
    return np.asarray(temperature**2 * each.reshape(len(x), -1).mean(axis=1))


def values(x: np.ndarray, t: np.ndarray, y: np.ndarray, temperature: float) -> np.ndarray:
    return np.asarray(((x - t) ** 2).reshape(len(x), -1).mean(axis=1))


CASES: dict[str, tuple[type[SoftLoss], Any, Any]] = {
    "classes": (SoftClasses, CrossEntropy, classes),
    "labels": (SoftLabels, BCEWithLogitsLoss, labels),
    "values": (SoftValues, MSELoss, values),
}
SHAPES = ((5,), (3, 4), (2, 3, 4))


def make(name: str, shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outputs of a model, those of its teacher, and targets, of 6 samples."""
    rng = np.random.default_rng(seed)
    x, t = 3 * rng.standard_normal((2, 6, *shape))
    if name == "classes":
        return x, t, rng.integers(-1, shape[-1], (6, *shape[:-1]))
    return x, t, rng.random((6, *shape))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CASES)
@given(temperature=st.floats(0.25, 20), seed=st.integers(0, 1 << 30))
@settings(max_examples=15, deadline=None)
def test_soft_losses(name: str, shape: tuple[int, ...], temperature: float, seed: int) -> None:
    kind, _, reference = CASES[name]
    x, t, y = make(name, shape, seed)
    loss = kind(OPS, temperature)
    found = loss.compare(x, t, y, 1 / 6)
    rows = np.array(found.losses).reshape(6, -1).sum(axis=1) / found.elements_per_sample
    np.testing.assert_allclose(rows, reference(x, t, y, temperature), rtol=1e-9, atol=1e-12)
    gradient = np.array(found.gradient)
    direction = np.random.default_rng(seed + 1).standard_normal(x.shape)
    step = 1e-5
    ends = [reference(x + s * step * direction, t, y, temperature).mean() for s in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * step)
    assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_a_model_like_its_teacher_has_nothing_to_learn_from_it(name: str) -> None:
    x, _, y = make(name, (3, 4), 0)
    found = CASES[name][0](OPS, 3.0).compare(x, x.copy(), y, 1.0)
    assert abs(found.total) < 1e-12 and np.abs(found.gradient).max() < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_both_losses_have_their_share(name: str) -> None:
    kind, own, _ = CASES[name]
    x, t, y = make(name, (3, 4), 1)
    alone: Loss = own(OPS)
    hard, soft = alone(x, y, 12), kind(OPS, 2.0).compare(x, t, y, 1 / 12)
    expected = 0.7 * np.array(hard.gradient) + 0.3 * np.array(soft.gradient)
    total = 0.7 * hard.total + 0.3 * soft.total
    both = DistilledLoss(own(OPS), kind(OPS, 2.0), 0.3)
    for scale in (1.0, 64.0):
        both.gradient_scale, both.taught = scale, t
        found = both(x, y, 12)
        np.testing.assert_allclose(found.gradient, scale * expected, rtol=1e-12)
        assert found.total == pytest.approx(total, rel=1e-12)
        assert (found.count, found.correct) == (hard.count, hard.correct)


def test_float32_is_close_to_float64() -> None:
    for name, (kind, _, reference) in CASES.items():
        x, t, y = make(name, (3, 4), 2)
        narrow = [a.astype(np.float32) if a.dtype.kind == "f" else a for a in (x, t, y)]
        found = kind(OPS, 4.0).compare(*narrow, 1.0)
        assert found.total == pytest.approx(reference(x, t, y, 4.0).sum(), rel=1e-4), name


def test_every_task_but_a_rollout_can_have_a_teacher() -> None:
    assert [name for name in TASKS if TASKS[name].soft is None] == ["rollout"]
