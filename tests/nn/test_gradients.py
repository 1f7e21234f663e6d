"""Gradients of every layer and of whole models against float64 central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpidl.backend import Ops
from mpidl.errors import ShapeError
from mpidl.models import build_layers
from mpidl.nn import Conv2D, CrossEntropy, Dense, Flatten, Layer, MaxPool2D, Model, ReLU

STEP = 1e-6
LAYERS: dict[str, tuple[list[Layer], tuple[int, ...]]] = {
    "dense": ([Dense(5)], (7,)),
    "dense relu": ([Dense(6, relu=True), Dense(5)], (7,)),
    "conv": ([Conv2D(3), Flatten()], (5, 4, 2)),
    "conv stride 2 pad 0": ([Conv2D(3, 3, stride=2, pad=0), Flatten()], (7, 6, 2)),
    "conv 5x5 relu": ([Conv2D(4, 5, relu=True), Conv2D(2, 1), Flatten()], (6, 6, 3)),
    "conv relu pool": (
        [Conv2D(4, relu=True), MaxPool2D(2), Conv2D(3, relu=True), MaxPool2D(2), Flatten()],
        (9, 8, 2),
    ),
    "relu": ([Dense(6), ReLU(), Dense(4)], (5,)),
    "pool": ([Conv2D(3, 1), MaxPool2D(3), Flatten()], (7, 8, 2)),
}


def compute_loss(model: Model, x: Any, labels: Any) -> float:
    logits, _ = model.forward(x, train=True)
    return CrossEntropy(model.ops)(logits, labels, len(x)).total / len(x)


def check_gradients(
    model: Model, x: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> None:
    """Every parameter tensor along random directions, and single elements of each."""
    ops, flat = model.ops, model.parameters
    device_x, device_y = ops.to_device(x), ops.to_device(labels)
    logits, backward = model.forward(device_x, train=True)
    backward(CrossEntropy(ops)(logits, device_y, len(x)).gradient, None)
    gradient = ops.to_host(flat.gradients).copy()
    original = ops.to_host(flat.values).copy()
    directions = []
    for slot in flat.slots.values():
        direction = np.zeros(flat.length)
        direction[slot.start : slot.stop] = rng.standard_normal(slot.stop - slot.start)
        directions.append(direction)
        single = np.zeros(flat.length)
        single[rng.integers(slot.start, slot.stop)] = 1
        directions.append(single)
    for direction in directions:
        losses = []
        for sign in (1, -1):
            flat.values[...] = ops.to_device(original + sign * STEP * direction)
            losses.append(compute_loss(model, device_x, device_y))
        numeric = (losses[0] - losses[1]) / (2 * STEP)
        assert numeric == pytest.approx(float(gradient @ direction), rel=1e-5, abs=1e-8)
    flat.values[...] = ops.to_device(original)


@pytest.mark.parametrize("name", LAYERS)
def test_layer_gradients(ops: Ops, name: str, rng: np.random.Generator) -> None:
    layers, shape = LAYERS[name]
    model = Model(layers, shape, ops, dtype=np.float64)
    model.parameters.initialize(3)
    x = rng.standard_normal((4, *shape))
    check_gradients(model, x, rng.integers(0, model.output_shape[0], 4), rng)


@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_model_gradients(ops: Ops, name: str, rng: np.random.Generator) -> None:
    options = {"cnn": {"channels": [3, 4], "hidden": [6]}, "mlp": {"hidden": [7, 5]}}[name]
    model = Model(build_layers(name, (8, 8, 1), 4, options), (8, 8, 1), ops, dtype=np.float64)
    model.parameters.initialize(5)
    check_gradients(model, rng.standard_normal((3, 8, 8, 1)), rng.integers(0, 4, 3), rng)


@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_the_backends_train_alike(ops: Ops, name: str, rng: np.random.Generator) -> None:
    """Ten float32 steps end in the same loss as pure float64 NumPy."""
    from mpidl.backend.numpy_ops import NumpyOps
    from mpidl.optim import SGD

    options = {"cnn": {"channels": [4, 8], "hidden": [16]}, "mlp": {"hidden": [32]}}[name]
    x, y = rng.standard_normal((16, 8, 8, 1)), rng.integers(0, 4, 16)
    losses = []
    for backend, dtype in ((ops, np.float32), (NumpyOps(use_c=False), np.float64)):
        model = Model(build_layers(name, (8, 8, 1), 4, options), (8, 8, 1), backend, dtype=dtype)
        model.parameters.initialize(1)
        optimizer, loss = (
            SGD(model.parameters, backend, weight_decay=1e-3),
            CrossEntropy(backend),
        )
        for _ in range(10):
            logits, backward = model.forward(backend.to_device(x.astype(dtype)), train=True)
            result = loss(logits, backend.to_device(y), 16)
            backward(result.gradient, None)
            optimizer.step(0.05)
        losses.append(result.total / 16)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] < np.log(4)


def test_empty_batch_gives_zero_gradients(ops: Ops) -> None:
    model = Model(
        build_layers("cnn", (8, 8, 1), 4, {"channels": [3], "hidden": [5]}), (8, 8, 1), ops
    )
    model.parameters.initialize(0)
    model.parameters.gradients[...] = 7
    logits, backward = model.forward(ops.to_device(np.zeros((0, 8, 8, 1), np.float32)), train=True)
    result = CrossEntropy(ops)(logits, ops.to_device(np.zeros(0, np.int64)), 16)
    backward(result.gradient, None)
    assert result.total == 0 and result.correct == 0
    for name in model.parameters.slots:
        assert not ops.to_host(model.parameters.gradient(name)).any()


def test_gradients_become_ready_last_layer_first_and_cover_all() -> None:
    from mpidl.backend.numpy_ops import NumpyOps

    ops = NumpyOps()
    model = Model(build_layers("cnn", (8, 8, 1), 4, {}), (8, 8, 1), ops)
    seen: list[tuple[int, int]] = []
    logits, backward = model.forward(np.zeros((2, 8, 8, 1), np.float32), train=True)
    backward(np.ones_like(logits), lambda start, stop: seen.append((start, stop)))
    assert [start for start, _ in seen] == sorted((start for start, _ in seen), reverse=True)
    covered = np.zeros(model.parameters.length, bool)
    for start, stop in seen:
        covered[start:stop] = True
    assert all(covered[slot.start : slot.stop].all() for slot in model.parameters.slots.values())


@pytest.mark.parametrize(
    ("layers", "shape", "words"),
    [
        ([Dense(3)], (4, 4, 1), "dense1"),
        ([Conv2D(3)], (4,), "conv2d1"),
        ([Conv2D(3, 5, pad=0)], (4, 4, 1), "conv2d1"),
        ([MaxPool2D(5)], (4, 4, 1), "max_pool2d1"),
        ([Conv2D(3), Dense(3)], (4, 4, 1), "dense1"),
    ],
)
def test_shapes_that_do_not_fit_name_the_layer(
    layers: list[Layer], shape: tuple[int, ...], words: str
) -> None:
    from mpidl.backend.numpy_ops import NumpyOps

    with pytest.raises(ShapeError, match=words):
        Model(layers, shape, NumpyOps())


def test_a_batch_of_another_shape_is_refused() -> None:
    from mpidl.backend.numpy_ops import NumpyOps

    model = Model([Flatten(), Dense(3)], (4, 4), NumpyOps())
    with pytest.raises(ShapeError, match=r"\(4, 4\).*\(5, 4\)"):
        model.forward(np.zeros((2, 5, 4), np.float32))


def test_initial_parameters_depend_on_the_seed_only(ops: Ops) -> None:
    from mpidl.backend.numpy_ops import NumpyOps

    flats = []
    for backend, seed in ((ops, 1), (NumpyOps(), 1), (NumpyOps(), 2)):
        model = Model([Flatten(), Dense(3, relu=True), Dense(2)], (4, 4), backend)
        model.parameters.initialize(seed)
        flats.append(backend.to_host(model.parameters.values))
    np.testing.assert_array_equal(flats[0], flats[1])
    assert not np.array_equal(flats[0], flats[2])
