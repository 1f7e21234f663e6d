"""Models unrolled in time: gradients by finite differences, and one step as without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpidl.backend.numpy_ops import NumpyOps
from mpidl.errors import ShapeError
from mpidl.models import build_layers
from mpidl.nn import Dense, FrameLoss, Model, MSELoss, RelativeL2Loss, Unrolled
from mpidl.train.passes import Passes

CASES = {
    "mlp": ((), 3, {"hidden": [8]}),
    "fno": ((12,), 2, {"width": 6, "modes": 3, "depth": 2}),
    "unet": ((8, 8), 1, {"size": "tiny"}),
}


def make(name: str, history: int, dtype: Any = np.float64, **more: Any) -> Model:
    space, channels, options = CASES[name]
    shape = (*space, history * channels)
    layers = build_layers(name, shape, channels, options)
    model = Model(layers, shape, NumpyOps(), dtype=dtype, **more)
    model.parameters.initialize(1)
    return model


def data(model: Model, steps: int, count: int = 3) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, *model.input_shape))
    targets = rng.standard_normal((count, steps, *model.output_shape))
    return x.astype(model.parameters.dtype), targets.astype(model.parameters.dtype)


@pytest.mark.parametrize("loss", [MSELoss, RelativeL2Loss])
@pytest.mark.parametrize(("steps", "history"), [(1, 2), (2, 1), (3, 1), (4, 3)])
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_finite_differences(
    name: str, steps: int, history: int, loss: Any
) -> None:
    model = make(name, history, input_gradient=True)
    x, targets = data(model, steps)
    unrolled, compare = Unrolled(model, steps, history), FrameLoss(loss(model.ops))
    flat, rng = model.parameters, np.random.default_rng(1)
    flat.values[...] += 0.05 * rng.standard_normal(flat.length)
    start = flat.values.copy()
    flat.gradients[...] = np.nan
    ready: list[tuple[int, int]] = []
    Passes(model, compare, through=unrolled).run(
        x, targets, len(x), lambda low, high: ready.append((low, high))
    )
    layers = [layer for layer in model.ranges if layer is not None]
    assert len(ready) == len(layers), "final once, in the last pass"
    found = flat.gradients.copy()

    def value(parameters: Any) -> float:
        flat.values[...] = parameters
        outputs, _ = unrolled.forward(x)
        return compare(outputs, targets, len(x)).total / len(x)

    used = np.zeros(flat.length, bool)
    for slot in flat.slots.values():
        used[slot.start : slot.stop] = True
    for _ in range(3):
        move = 1e-8 * rng.standard_normal(flat.length) * used
        wanted = (value(start + move) - value(start - move)) / 2
        assert wanted == pytest.approx(float(found[used] @ move[used]), rel=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_one_step_is_a_plain_pass_bit_for_bit(name: str) -> None:
    gradients, totals = [], []
    for unroll in (False, True):
        model = make(name, 2, np.float32, input_gradient=unroll)
        x, targets = data(model, 1)
        passes = Passes(model, MSELoss(model.ops))
        if unroll:
            compare = FrameLoss(MSELoss(model.ops))
            passes = Passes(model, compare, through=Unrolled(model, 1, 2))
        result = passes.run(x, targets if unroll else targets[:, 0], 7, None)
        gradients.append(model.parameters.gradients.copy())
        totals.append(result.total)
    np.testing.assert_array_equal(*gradients)
    assert totals[0] == totals[1]


def test_outputs_are_those_of_single_passes_with_the_newest_frame_last() -> None:
    model = make("fno", 2)
    x, _ = data(model, 5)
    found, _ = Unrolled(model, 5, 2).forward(x)
    before, now = x[..., :2], x[..., 2:]
    for step in range(5):
        following = model.forward(np.concatenate((before, now), axis=-1))[0].copy()
        np.testing.assert_array_equal(found[:, step], following)
        before, now = now, following


def test_the_loss_is_the_mean_of_the_frames() -> None:
    ops, rng = NumpyOps(), np.random.default_rng(2)
    outputs, targets = rng.standard_normal((2, 4, 3, 6))
    for kind in (MSELoss, RelativeL2Loss):
        found = FrameLoss(kind(ops))(outputs, targets, 4)
        single = [kind(ops)(outputs[:, i].copy(), targets[:, i].copy(), 4) for i in range(3)]
        assert found.total == pytest.approx(sum(one.total for one in single) / 3, rel=1e-12)
        wanted = np.stack([one.gradient for one in single], axis=1) / 3
        np.testing.assert_allclose(found.gradient, wanted, rtol=1e-12)
    with pytest.raises(ShapeError, match="3 frames are compared with 2"):
        FrameLoss(MSELoss(ops))(outputs, targets[:, :2], 4)


def test_a_model_without_the_gradient_of_its_input_cannot_be_trained_over_steps() -> None:
    model = Model([Dense(3)], (3,), NumpyOps())
    outputs, backward = Unrolled(model, 2).forward(np.ones((1, 3), np.float32), train=True)
    with pytest.raises(ShapeError, match="input_gradient"):
        backward(np.ones_like(outputs), None)
