"""Optimizers against their definitions, tensor by tensor, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpidl.nn import Dense, Model
from mpidl.optim import LAMB, LARS, OPTIMIZERS, Adam, AdamW, clip_by_global_norm


def model_of(ops: Any) -> Model:
    model = Model([Dense(5, relu=True), Dense(3)], (4,), ops, dtype=np.float64)
    model.parameters.initialize(1)
    return model


def tensors(model: Model, flat: Any) -> dict[str, np.ndarray]:
    host = model.ops.to_host(flat).copy()
    return {name: host[slot.start : slot.stop] for name, slot in model.parameters.slots.items()}


def adam(p: Any, g: Any, m: Any, v: Any, t: int, decay: float) -> Any:
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
    return m, v, m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.99**t)) + 1e-3) + decay * p


def reference(
    name: str,
    p: np.ndarray,
    g: np.ndarray,
    state: list[np.ndarray],
    t: int,
    lr: float,
    weight: bool,
) -> np.ndarray:
    if name == "lars":
        ratio = (
            0.02 * np.linalg.norm(p) / (np.linalg.norm(g) + 0.1 * np.linalg.norm(p))
            if weight
            else 1.0
        )
        state[0] = 0.9 * state[0] + ratio * (g + (0.1 * p if weight else 0))
        return p - lr * state[0]
    decay = 0.1 if name == "adamw" or (name == "lamb" and weight) else 0.0
    grad = g + 0.1 * p if name == "adam" else g
    state[0], state[1], step = adam(p, grad, state[0], state[1], t, decay)
    if name == "lamb" and weight:
        step = step * np.linalg.norm(p) / np.linalg.norm(step)
    return p - lr * step


@pytest.mark.parametrize("name", ["adam", "adamw", "lars", "lamb"])
def test_optimizers_do_what_their_papers_say(ops: Any, name: str, rng: np.random.Generator) -> None:
    model = model_of(ops)
    moments: Any = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-3, "weight_decay": 0.1}
    made: Any = {
        "adam": lambda: Adam(model.parameters, ops, **moments),
        "adamw": lambda: AdamW(model.parameters, ops, **moments),
        "lars": lambda: LARS(model.parameters, ops, weight_decay=0.1, trust=0.02),
        "lamb": lambda: LAMB(model.parameters, ops, **moments),
    }[name]()
    wanted = tensors(model, model.parameters.values)
    states = {key: [np.zeros_like(value), np.zeros_like(value)] for key, value in wanted.items()}
    for step in range(1, 5):
        flat = np.zeros(model.parameters.length)
        for key, slot in model.parameters.slots.items():
            gradient = flat[slot.start : slot.stop] = rng.standard_normal(slot.stop - slot.start)
            wanted[key] = reference(
                name, wanted[key], gradient, states[key], step, 0.05, key.endswith("weight")
            )
        model.parameters.gradients[...] = ops.to_device(flat)
        made.step(0.05)
    for key, value in tensors(model, model.parameters.values).items():
        np.testing.assert_allclose(value, wanted[key], rtol=1e-9, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_padding_stays_zero(ops: Any, rng: np.random.Generator, name: str) -> None:
    model = model_of(ops)
    inside = np.zeros(model.parameters.length, bool)
    for slot in model.parameters.slots.values():
        inside[slot.start : slot.stop] = True
    optimizer = OPTIMIZERS[name](model.parameters, ops)
    before = ops.to_host(model.parameters.values).copy()
    gradients = np.where(inside, rng.standard_normal(len(inside)), 0)
    model.parameters.gradients[...] = ops.to_device(gradients)
    optimizer.step(0.1)
    values = ops.to_host(model.parameters.values)
    assert not values[~inside].any() and (values != before)[inside].any()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_new_shard_starts_with_fresh_state(ops: Any, rng: np.random.Generator, name: str) -> None:
    """A strategy binds the optimizer to the shard of its rank."""
    model = model_of(ops)
    optimizer = OPTIMIZERS[name](model.parameters, ops)
    model.parameters.gradients[...] = 1
    optimizer.step(0.1)
    shard = model.parameters.make_shard([(0, 20), (32, 40)])
    optimizer.bind(shard)
    assert set(optimizer.state) == set(optimizer.buffers)
    for array in optimizer.state.values():
        assert array.shape == (28,) and not ops.to_host(array).any()
    shard.values[...] = ops.to_device(rng.standard_normal(28))
    before = ops.to_host(shard.values).copy()
    shard.gradients[...] = ops.to_device(rng.standard_normal(28))
    optimizer.step(0.1)
    assert (ops.to_host(shard.values) != before).any()


def test_clipping_scales_to_the_limit_and_not_below(ops: Any, rng: np.random.Generator) -> None:
    model = model_of(ops)
    flat = rng.standard_normal(model.parameters.length)
    model.parameters.gradients[...] = ops.to_device(flat)
    assert clip_by_global_norm(model.parameters, ops, 1e6) == pytest.approx(np.linalg.norm(flat))
    np.testing.assert_array_equal(ops.to_host(model.parameters.gradients), flat)
    clip_by_global_norm(model.parameters, ops, 0.5)
    np.testing.assert_allclose(
        ops.to_host(model.parameters.gradients), flat * 0.5 / np.linalg.norm(flat)
    )
