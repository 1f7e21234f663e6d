"""Every model, in its tiny size: gradients, memorizing 32 samples, and the same training on all backends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpidl.backend import Ops
from mpidl.backend.numpy_ops import NumpyOps
from mpidl.models import MODELS, SIZES, layers_of
from mpidl.nn import CrossEntropy, Model, MSELoss
from mpidl.optim import SGD, Adam
from mpidl.testing import check_gradients

# input shape, classes (or fields), learning rate
TASKS: dict[str, tuple[tuple[int, ...], int, float]] = {
    "cnn": ((8, 8, 1), 4, 1e-2),
    "fno": ((16, 16, 2), 1, 1e-2),
    "gpt": ((12,), 11, 3e-3),
    "lstm": ((12,), 11, 1e-2),
    "mlp": ((8, 8, 1), 4, 1e-2),
    "resnet": ((16, 16, 3), 4, 1e-2),
    "resnet18": ((16, 16, 3), 4, 1e-2),
    "resnet50": ((16, 16, 3), 4, 1e-2),
    "unet": ((16, 16, 2), 1, 1e-2),
    "vit": ((16, 16, 3), 4, 3e-3),
}
FIELDS = ("fno", "unet")


def test_every_model_has_two_sizes_and_a_task() -> None:
    assert set(MODELS) == set(SIZES) == set(TASKS)
    assert all(set(sizes) == {"tiny", "real"} for sizes in SIZES.values())


def samples(name: str, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    shape, classes, _ = TASKS[name]
    if len(shape) == 1:
        text = rng.integers(0, classes, (count, shape[0] + 1))
        text[:, 0] = np.arange(count) % classes
        return text[:, :-1].copy(), text[:, 1:].copy()
    x = rng.standard_normal((count, *shape)).astype(np.float32)
    if name in FIELDS:
        return x, np.sin(x[..., :1] + np.roll(x[..., 1:], 1, axis=1)).astype(np.float32)
    return x, rng.integers(0, classes, count)


def make(name: str, ops: Ops, dtype: Any = np.float32) -> tuple[Model, Any]:
    shape, classes, _ = TASKS[name]
    model = Model(layers_of(name, shape, classes, {"size": "tiny"}), shape, ops, dtype=dtype)
    model.parameters.initialize(3)
    return model, MSELoss(ops) if name in FIELDS else CrossEntropy(ops)


def train(
    model: Model, loss: Any, optimizer: Any, x: np.ndarray, y: np.ndarray, steps: int, lr: float
) -> list[float]:
    ops, losses = model.ops, []
    for step in range(steps):
        model.runtime.step = step
        output, backward = model.forward(ops.to_device(x), train=True)
        result = loss(output, ops.to_device(y), len(y))
        backward(result.gradient, None)
        optimizer.step(lr)
        losses.append(result.total / len(y))
    return losses


@pytest.mark.parametrize("name", sorted(MODELS))
def test_gradients(name: str, rng: np.random.Generator) -> None:
    shape, classes, _ = TASKS[name]
    inputs = (
        rng.integers(0, classes, (4, *shape))
        if len(shape) == 1
        else rng.standard_normal((4, *shape))
    )
    step = 1e-8 if "resnet" in name else 1e-6
    check_gradients(
        list(layers_of(name, shape, classes, {"size": "tiny"})),
        shape,
        inputs=inputs,
        step=step,
        rtol=1e-3,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", sorted(MODELS))
def test_memorises_32_samples(name: str, rng: np.random.Generator) -> None:
    model, loss = make(name, NumpyOps())
    x, y = samples(name, 32, rng)
    losses = train(
        model,
        loss,
        Adam(model.parameters, model.ops),
        x,
        y,
        80 if name == "resnet50" else 150,
        TASKS[name][2],
    )
    # of random text a rest is left: three lines share their first token
    assert losses[-1] < (0.3 if len(TASKS[name][0]) == 1 else 0.05) * losses[0], (
        losses[0],
        losses[-1],
    )


@pytest.mark.parametrize("name", ["cnn", "gpt", "resnet", "lstm", "fno"])
def test_the_backends_train_alike(ops: Ops, name: str, rng: np.random.Generator) -> None:
    """Float32 on this backend against float64 in plain NumPy, a few steps."""
    x, y = samples(name, 4, rng)
    ends = []
    for backend, dtype in ((ops, np.float32), (NumpyOps(use_c=False), np.float64)):
        model, loss = make(name, backend, dtype)
        data = x.astype(dtype) if x.dtype.kind == "f" else x
        target = y.astype(dtype) if y.dtype.kind == "f" else y
        ends.append(train(model, loss, SGD(model.parameters, backend), data, target, 4, 0.01)[-1])
    assert ends[0] == pytest.approx(ends[1], rel=2e-3)
