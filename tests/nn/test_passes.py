"""Activations belong to a pass: several may be in flight, and what is gone is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpidl.errors import BackendError, ConfigError, ShapeError
from mpidl.models import MODELS
from mpidl.nn import (
    Concat,
    CrossEntropy,
    Dense,
    Dropout,
    Embedding,
    Identity,
    LayerNorm,
    Model,
    Recompute,
    ReLU,
    Residual,
    Sequential,
)
from tests.models.test_models import make, samples


def small(ops: Any) -> Model:
    body = [LayerNorm(), Dense(8), Dropout(0.5), ReLU()]
    model = Model(
        [Dense(8), Residual(body), Recompute([Dense(8), ReLU(), Dropout(0.3)]), Dense(3)], (5,), ops
    )
    model.parameters.initialize(1)
    return model


def test_two_passes_in_flight_equal_one_after_the_other(ops: Any, rng: np.random.Generator) -> None:
    """Backward in either order; random masks are those of the pass."""
    batches = [ops.to_device(rng.standard_normal((n, 5)).astype(np.float32)) for n in (4, 4, 7)]
    model = small(ops)
    wanted, outputs = [], []
    for part, x in enumerate(batches):
        model.runtime.micro_batch = part
        y, backward = model.forward(x, train=True)
        outputs.append(ops.to_host(y).copy())
        backward(y * 0 + 1)
        wanted.append(ops.to_host(model.parameters.gradients).copy())
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        flying = []
        for part, x in enumerate(batches):
            model.runtime.micro_batch = part
            flying.append(model.forward(x, train=True))
        model.forward(batches[2])  # an evaluation in between
        for part in order:
            y, backward = flying[part]
            np.testing.assert_array_equal(ops.to_host(y), outputs[part])
            backward(y * 0 + 1)
            np.testing.assert_array_equal(ops.to_host(model.parameters.gradients), wanted[part])


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_with_two_passes_in_flight(name: str, rng: np.random.Generator) -> None:
    from mpidl.backend.numpy_ops import NumpyOps

    model, _ = make(name, NumpyOps())
    inputs = [samples(name, count, rng)[0] for count in (2, 3)]
    wanted = []
    for x in inputs:
        y, backward = model.forward(x, train=True)
        backward(np.ones_like(y))
        wanted.append(model.parameters.gradients.copy())
    first, second = (model.forward(x, train=True) for x in inputs)
    for (y, backward), exact in ((first, wanted[0]), (second, wanted[1])):
        backward(np.ones_like(y))
        np.testing.assert_array_equal(model.parameters.gradients, exact)


def test_steady_steps_allocate_nothing_and_keep_one_set(ops: Any, rng: np.random.Generator) -> None:
    model, loss = small(ops), CrossEntropy(ops)
    x = ops.to_device(rng.standard_normal((6, 5)).astype(np.float32))
    labels = ops.to_device(rng.integers(0, 3, 6))

    def step() -> None:
        y, backward = model.forward(x, train=True)
        backward(loss(y, labels, 6).gradient)

    step()
    before = ops.allocations
    for _ in range(3):
        step()
        model.forward(x)
        y, backward = model.forward(x, train=True)  # given up without a backward pass
        del y, backward
    assert ops.allocations == before and len(model._passes.free) == 1


def test_a_backward_pass_whose_activations_are_gone_is_refused(ops: Any) -> None:
    model, x = small(ops), ops.to_device(np.ones((2, 5), np.float32))
    y, backward = model.forward(x, train=True)
    backward(y * 0 + 1)
    with pytest.raises(BackendError, match="called twice"):
        backward(y * 0 + 1)
    y, backward = model.forward(x)
    model.forward(x)
    with pytest.raises(BackendError, match="another forward pass"):
        backward(y * 0 + 1)


@pytest.mark.parametrize(
    "layers",
    [
        lambda relu: [Dense(4), relu, Dense(4), relu],
        lambda relu: [Dense(4), Sequential([relu, Dense(4)]), relu],
        lambda relu: [Residual([Dense(4), relu], [Dense(4), relu]), Dense(4)],
        lambda relu: [Concat([relu, relu, Identity()])],
        lambda relu: [Recompute([Dense(4), relu]), Recompute([Dense(4), relu])],
        lambda relu: [Sequential([Sequential([relu]), Sequential([relu])])],
    ],
)
def test_one_object_at_two_places_is_refused(layers: Any, ops: Any) -> None:
    with pytest.raises(ConfigError, match="ReLU object is used twice"):
        Model(layers(ReLU()), (4,), ops)


def test_a_layer_of_a_living_model_is_refused_in_another(ops: Any) -> None:
    """It would compute with the parameters of the newer one."""
    layers = [Dense(4), ReLU()]
    model = Model(layers, (4,), ops)
    with pytest.raises(ConfigError, match="in two models"):
        Model(layers, (4,), ops)
    del model
    Model(layers, (4,), ops)


def test_inputs_are_taken_as_they_come(ops: Any, rng: np.random.Generator) -> None:
    """Views, other dtypes and host arrays are copied into what the layers take."""
    model = Model([LayerNorm(), Dense(3)], (6,), ops)
    model.parameters.initialize(0)
    wide = rng.standard_normal((4, 12))
    exact = ops.to_host(
        model.forward(ops.to_device(np.ascontiguousarray(wide[:, ::2], np.float32)))[0]
    ).copy()
    for given in (
        wide[:, ::2],
        wide.astype(np.float32)[:, ::2],
        wide[:, ::2].astype(">f8"),
        np.asfortranarray(wide[:, ::2]),
    ):
        y, _ = model.forward(given)
        assert y.dtype == np.float32
        np.testing.assert_allclose(ops.to_host(y), exact, rtol=1e-6, atol=1e-6)
    y, _ = model.forward([list(row) for row in wide[:, ::2]])
    np.testing.assert_allclose(ops.to_host(y), exact, rtol=1e-6, atol=1e-6)
    whole = rng.integers(0, 9, (4, 6))
    exact = ops.to_host(model.forward(whole.astype(np.float32))[0]).copy()
    np.testing.assert_array_equal(ops.to_host(model.forward(whole.astype(np.uint8))[0]), exact)


def test_a_gradient_that_may_not_be_written_is_copied(rng: np.random.Generator) -> None:
    """Arrays of other frameworks and mapped files: kernels would write through their addresses."""
    from mpidl.backend.numpy_ops import NumpyOps

    model = Model([Dense(4, relu=True), ReLU()], (3,), NumpyOps())
    model.parameters.initialize(0)
    x = rng.standard_normal((5, 3)).astype(np.float32)
    given = np.frombuffer(np.ones((5, 4), np.float32).tobytes(), np.float32).reshape(5, 4)
    _, backward = model.forward(x, train=True)
    backward(given)
    assert (given == 1).all()


def test_inputs_that_mean_something_else_are_refused(ops: Any) -> None:
    model = Model([Dense(3)], (2,), ops)
    for bad in (np.ones((1, 2), complex), [["a", "b"]], np.array([[1, 2]], object)):
        if ops.name == "cupy" and np.asarray(bad).dtype.kind != "c":
            continue  # CuPy has no such arrays
        with pytest.raises(ShapeError, match="takes real numbers"):
            model.forward(bad)
    tokens = Model([Embedding(5, 4)], (2,), ops)
    with pytest.raises(ShapeError, match="takes ids"):
        tokens.forward(np.array([[0.5, 1.5]]))
