"""Every model, in its tiny size: gradients, memorizing 32 samples, training on all backends."""

from __future__ import annotations

import typing
from typing import Any

import numpy as np
import pytest

from mpidl.backend import Ops
from mpidl.backend.numpy_ops import NumpyOps
from mpidl.errors import ConfigError, ShapeError
from mpidl.models import MODELS, build_layers
from mpidl.models.base import Samples
from mpidl.nn import CrossEntropy, Dense, Model, MSELoss
from mpidl.optim import SGD, Adam
from mpidl.options import Place, documented
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
    assert set(MODELS) == set(TASKS)
    for name in MODELS:
        assert set(MODELS[name].sizes) == {"tiny", "real"}
        assert MODELS[name].samples in typing.get_args(Samples)
        options = MODELS.options(name)
        for values in MODELS[name].sizes.values():
            options.read(values, Place(("model",)))
        assert set(documented(options)) == set(options.keys())


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cnm", {}, "there is no such model.*cnn"),
        ("cnn", {"size": "tiney"}, "there is no such size.*tiny"),
        ("cnn", {"chanels": [3]}, "unknown key 'model.chanels'.*model.channels"),
        ("cnn", {"channels": [3, 0]}, "model.channels.*of at least 1"),
        ("gpt", {"dropout": 1.0}, "model.dropout.*below 1"),
        ("resnet", {"depth": 11}, "model.depth.*10, 18"),
        ("resnet18", {"stem": "smal"}, "model.stem.*small"),
        ("lstm", {"sequences": "yes"}, "model.sequences.*true or false"),
    ],
)
def test_impossible_options_are_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        build_layers(name, (8, 8, 1), 4, options)


def test_given_options_win_over_those_of_the_size() -> None:
    layers = build_layers("mlp", (4,), 3, {"size": "tiny", "hidden": [7, 5]})
    assert [layer.units for layer in layers if isinstance(layer, Dense)] == [7, 5, 3]
    layers = build_layers("mlp", (4,), 3, {"size": "tiny"})
    assert [layer.units for layer in layers if isinstance(layer, Dense)] == [32, 3]


@pytest.mark.parametrize(("name", "options"), [("vit", {"patch": 16}), ("unet", {})])
def test_samples_that_a_model_cannot_take_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match=rf"model {name}.*\(9, 15"):
        build_layers(name, (9, 15, 3), 4, options)


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
    model = Model(build_layers(name, shape, classes, {"size": "tiny"}), shape, ops, dtype=dtype)
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
        list(build_layers(name, shape, classes, {"size": "tiny"})),
        shape,
        inputs=inputs,
        step=step,
        rtol=1e-3,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", sorted(MODELS))
def test_memorizes_32_samples(name: str, rng: np.random.Generator) -> None:
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
