"""Rollouts: windows, normalization, metrics of each horizon, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpidl.backend.numpy_ops import NumpyOps
from mpidl.data.manifest import Field
from mpidl.errors import ConfigError, DataError
from mpidl.models import build_layers
from mpidl.nn import LossResult, Model
from mpidl.task import FieldSpec, InputSpec, Source, TargetSpec
from mpidl.task.rollout import Rollout
from mpidl.train.inputs import Inputs


def task(shape: tuple[int, ...], scale: Any = ((0.0,), (1.0,)), **options: Any) -> Rollout:
    chosen = Rollout.Options(**options)
    Rollout.describe_targets(chosen, Source({"u": field(shape)}, {}, "image", "data"))
    spec = InputSpec("rollout", (FieldSpec("u", shape, *scale),), TargetSpec())
    return Rollout(chosen, spec)


def field(shape: tuple[int, ...], dtype: str = "float32") -> Field:
    return Field(dtype=dtype, shape=shape, role="feature")


@pytest.mark.parametrize(
    ("shape", "options", "frame", "inputs"),
    [
        ((9, 16), {}, (16, 1), (16, 1)),
        ((9, 5), {"dimensions": 0, "history": 2}, (5,), (10,)),
        ((9, 16, 3), {"dimensions": 1, "history": 2}, (16, 3), (16, 6)),
        ((9, 8, 12), {"dimensions": 2}, (8, 12, 1), (8, 12, 1)),
        ((9, 8, 12, 2), {"history": 3}, (8, 12, 2), (8, 12, 6)),
        ((9, 8, 8, 8), {"dimensions": 3}, (8, 8, 8, 1), (8, 8, 8, 1)),
    ],
)
def test_frames_are_what_the_axes_say(shape: Any, options: Any, frame: Any, inputs: Any) -> None:
    found = task(shape, **options)
    assert (found.frame, found.input_shape) == (frame, inputs)
    assert found.fits(frame) and not found.fits((*frame, 1))
    u = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    history = options.get("history", 1)
    (given,) = found.features({"u": u})
    frames = u.reshape(2, 9, *frame)
    wanted = np.concatenate([frames[:, i] for i in range(history)], axis=-1)
    np.testing.assert_array_equal(given, wanted)
    targets = found.targets({"u": u})
    np.testing.assert_array_equal(targets, frames[:, history:])
    assert found.predictions(targets)["value"].shape == (2, 9 - history, *shape[1:])


@settings(max_examples=50, deadline=None)
@given(
    frames=st.integers(2, 9),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 5),
    step=st.integers(0, 10**6),
    data=st.data(),
)
def test_windows_depend_on_nothing_but_seed_epoch_and_sample(
    frames: int, seed: int, epoch: int, step: int, data: Any
) -> None:
    history = data.draw(st.integers(1, frames - 1))
    steps = data.draw(st.integers(1, frames - history))
    made = task((frames, 4), history=history, steps=steps)
    numbers = np.array(data.draw(st.lists(st.integers(0, 2**40), min_size=1, max_size=8)))
    u = (
        np.arange(frames, dtype=np.float32)[:, None]
        + 100.0 * np.arange(len(numbers))[:, None, None]
    )
    u = np.broadcast_to(u, (len(numbers), frames, 4))
    whole = made.draw({"u": u}, numbers, (epoch, step), seed)["u"]
    assert whole.shape == (len(numbers), history + steps, 4)
    np.testing.assert_array_equal(np.diff(whole, axis=1), 1)  # frames that follow each other
    np.testing.assert_array_equal(whole[:, 0, 0] // 100, np.arange(len(numbers)))
    order = np.array(data.draw(st.permutations(range(len(numbers)))))
    other = made.draw({"u": u[order]}, numbers[order], (epoch, step), seed)["u"]
    np.testing.assert_array_equal(other, whole[order])


def test_all_windows_are_drawn_equally_often() -> None:
    made = task((12, 1), dimensions=1, history=2, steps=3)
    u = np.broadcast_to(np.arange(12.0)[:, None], (4000, 12, 1))
    places = ((0, 0), (0, 1), (1, 0))
    starts = [made.draw({"u": u}, np.arange(4000), place, 5)["u"][:, 0, 0] for place in places]
    for found in starts:
        counts = np.bincount(found.astype(int), minlength=8)
        assert len(counts) == 8 and abs(counts - 500).max() < 5 * np.sqrt(500)
    assert min((starts[0] != other).mean() for other in starts[1:]) > 0.8


@pytest.mark.parametrize("history", [1, 2])
def test_inputs_and_targets_have_one_normalization(history: int) -> None:
    scale = ((1.0, -200.0), (0.5, 30.0))
    made = task((6, 16, 2), scale, dimensions=1, history=history)
    layers = build_layers("fno", made.input_shape, 2, {"size": "tiny"})
    inputs = Inputs(made, Model(layers, made.input_shape, NumpyOps()))
    u = (np.random.default_rng(0).standard_normal((3, 6, 16, 2)) * scale[1] + scale[0]).astype("f")
    x, y = inputs.features({"u": u}), inputs.targets({"u": u})
    wanted = (u - scale[0]) / scale[1]
    np.testing.assert_allclose(x[..., -2:], wanted[:, history - 1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(x[..., :2], wanted[:, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(y, wanted[:, history:], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(made.predictions(y)["value"], u[:, history:], rtol=1e-5, atol=1e-4)


def test_points_have_one_normalization() -> None:
    u = np.random.default_rng(0).standard_normal((50, 6, 16)) * np.arange(1, 17) + np.arange(16)
    scale = tuple(u.mean(axis=(0, 1)).tolist()), tuple(u.std(axis=(0, 1)).tolist())
    (found,) = task((6, 16), scale).input_fields
    assert found.mean == pytest.approx([u.mean()]) and found.std == pytest.approx([u.std()])


@pytest.mark.parametrize("frames", [1, 2, 5, 8])
def test_metrics_are_those_of_the_whole_arrays(frames: int) -> None:
    made = task((frames + 1, 7), ((3.0,), (2.0,)))
    rng = np.random.default_rng(frames)
    u, outputs = rng.standard_normal((11, frames + 1, 7)), rng.standard_normal((11, frames, 7, 1))
    sums = np.zeros(made.sums)
    for low, high in ((0, 4), (4, 5), (5, 11)):
        losses = np.ones((high - low) * frames, np.float32)
        result = LossResult(np.empty(0), high - low, losses, frames)
        made.add(sums, made.scored(outputs[low:high], result, {"u": u[low:high]}))
    found = made.evaluation(sums)
    true, error = u[:, 1:], outputs[..., 0] * 2 + 3 - u[:, 1:]
    relative = np.linalg.norm(error, axis=2) / np.linalg.norm(true, axis=2)
    assert found.loss == 1 and found.samples == 11
    assert found.metrics["rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-12)
    assert found.metrics["relative_l2"] == pytest.approx(relative.mean(), rel=1e-12)
    assert found.details["relative_l2_by_frame"] == pytest.approx(relative.mean(axis=0))
    wanted = np.sqrt((error**2).mean(axis=(0, 2)))
    assert found.details["rmse_by_frame"] == pytest.approx(wanted)
    ahead = [int(n[12:-1]) for n in found.metrics if "[" in n]
    assert ahead == {1: [1], 2: [1, 2], 5: [1, 2, 4, 5], 8: [1, 2, 4, 8]}[frames]
    assert found.score == -found.metrics["relative_l2"]


@pytest.mark.parametrize(
    ("shape", "dtype", "options", "error", "message"),
    [
        ((9, 8, 8), "float32", {}, ConfigError, "task.dimensions to 1 or 2"),
        ((9, 8), "float32", {"dimensions": 2}, ConfigError, "set it to 1"),
        ((9, 8, 8, 2), "float32", {"dimensions": 1}, ConfigError, "set it to 3"),
        ((9, 8), "float32", {"history": 4, "steps": 6}, ConfigError, "task.history"),
        ((9,), "float32", {}, DataError, "real numbers"),
        ((9, 8), "uint8", {}, DataError, "real numbers"),
    ],
)
def test_what_does_not_fit_is_refused(
    shape: Any, dtype: str, options: Any, error: Any, message: str
) -> None:
    source = Source({"u": field(shape, dtype)}, {}, "image", "data")
    with pytest.raises(error, match=message):
        Rollout.describe_targets(Rollout.Options(**options), source)
