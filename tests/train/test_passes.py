"""Passes as captured graphs: the same training, step by step, as kernels launched one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpidl.backend.numpy_ops import NumpyOps
from mpidl.errors import BackendError
from mpidl.models import build_layers
from mpidl.nn import CrossEntropy, Dense, GroupNorm, Model
from mpidl.optim import Adam
from mpidl.train.passes import Passes

MODELS: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("cnn", (8, 8, 1), {"size": "tiny"}),
    ("gpt", (12,), {"width": 32, "depth": 2, "heads": 2, "dropout": 0.2}),
    ("mlp", (6,), {"size": "tiny"}),
]


def train(
    ops: Any, which: int, *, graphs: bool, dtype: Any = np.float32
) -> tuple[list[float], np.ndarray, Passes]:
    name, shape, options = MODELS[which]
    model = Model(build_layers(name, shape, 10, options), shape, ops, compute_dtype=dtype)
    model.parameters.initialize(1)
    model.runtime.seed = 3
    passes = Passes(model, CrossEntropy(ops), graphs=graphs)
    optimizer, rng, space, losses = (
        Adam(model.parameters, ops),
        np.random.default_rng(0),
        ops.workspace(),
        [],
    )
    for step, count in enumerate(
        [8, 8, 5, 8, 30, 8]
    ):  # a last, smaller batch; a larger one moves the layers' memory
        model.runtime.step = step
        drawn = (
            rng.integers(0, 10, (count, *shape))
            if name == "gpt"
            else rng.standard_normal((count, *shape)).astype(dtype)
        )
        x = space.get("x", drawn.shape, drawn.dtype)
        x[...] = ops.stage(drawn, "x")
        y = space.get("y", (count, *model.output_shape[:-1]), np.int64)
        y[...] = ops.stage(rng.integers(0, 10, y.shape), "y")
        ready: list[tuple[int, int]] = []
        result = passes.run(
            x, y, len(y), lambda start, stop, ready=ready: ready.append((start, stop))
        )
        assert min(start for start, _ in ready) == 0
        losses.append(result.total)
        optimizer.step(0.01)
    return losses, np.array(ops.to_host(model.parameters.values)), passes


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("which", range(len(MODELS)), ids=[name for name, _, _ in MODELS])
def test_graphs_train_as_single_launches_do(gpu_ops: Any, which: int, dtype: Any) -> None:
    losses, values, _ = train(gpu_ops, which, graphs=False, dtype=dtype)
    wanted, expected, passes = train(gpu_ops, which, graphs=True, dtype=dtype)
    assert passes.graphs and len(passes._captured) == 3
    np.testing.assert_allclose(losses, wanted, rtol=1e-6)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)


def test_graphs_are_for_devices_and_layers_that_can() -> None:
    class Fake(NumpyOps):
        captures = True

    plain, fake = NumpyOps(), Fake()
    assert not Passes(Model([Dense(3)], (4,), plain), CrossEntropy(plain), graphs=True).graphs
    assert Passes(Model([Dense(3)], (4,), fake), CrossEntropy(fake), graphs=True).graphs
    assert not Passes(
        Model([Dense(8), GroupNorm(2)], (4,), fake), CrossEntropy(fake), graphs=True
    ).graphs


def test_staged_inputs_stay_for_two_calls(gpu_ops: Any) -> None:
    """And are copied before anything may read them, although the host array changes at once."""
    held = []
    for turn in range(5):
        host = np.full((3, 4), turn, np.float32)
        held.append(gpu_ops.stage(host, "slot"))
        host[...] = -1
        for back in range(min(2, turn + 1)):
            np.testing.assert_array_equal(
                gpu_ops.to_host(held[turn - back]), np.full((3, 4), turn - back)
            )


def test_a_pass_in_flight_is_not_overwritten_unnoticed_by_a_graph(gpu_ops: Any) -> None:
    """A graph writes to the memory that it was captured with, whoever has that now."""
    model = Model([Dense(8, relu=True), Dense(3)], (5,), gpu_ops)
    model.parameters.initialize(1)
    passes, rng = Passes(model, CrossEntropy(gpu_ops), graphs=True), np.random.default_rng(0)
    x, other = (gpu_ops.to_device(rng.standard_normal((4, 5)).astype(np.float32)) for _ in range(2))
    labels = gpu_ops.to_device(rng.integers(0, 3, 4))
    passes.run(x, labels, 4, None)
    wanted = gpu_ops.to_host(model.parameters.gradients).copy()
    y, backward = model.forward(other, train=True)
    passes.run(x, labels, 4, None)
    np.testing.assert_array_equal(gpu_ops.to_host(model.parameters.gradients), wanted)
    with pytest.raises(BackendError, match="another forward pass"):
        backward(y * 0 + 1)
