"""Help for tests of layers that users write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpidl.backend import Ops
from mpidl.nn import Layer, Model


class GradientError(AssertionError):
    """A gradient is not the derivative of the forward pass."""


def check_gradients(
    layers: Layer | Sequence[Layer],
    shape: tuple[int, ...],
    *,
    batch: int = 3,
    ops: Ops | None = None,
    inputs: Any = None,
    seed: int = 0,
    step: float = 1e-6,
    rtol: float = 1e-5,
    atol: float = 1e-7,
) -> None:
    """Compare the backward passes of `layers` with central differences of their forward passes, in float64.

    shape: of one input sample. inputs: (batch, *shape) to use instead of normal random numbers; integers have no gradient.
    Every parameter tensor, and the input, is moved by `step` along a random direction and in one random element: take a smaller
    one for deep networks with ReLU, which have many kinks. Raises GradientError naming the tensor.
    """
    from mpidl.backend.numpy_ops import NumpyOps

    rng = np.random.default_rng(seed)
    ops = ops or NumpyOps()
    given = np.asarray(rng.standard_normal((batch, *shape)) if inputs is None else inputs)
    model = Model([layers] if isinstance(layers, Layer) else layers, shape, ops, dtype=np.float64)
    model.parameters.initialize(seed)
    flat = model.parameters
    start = ops.to_host(flat.values).copy() + 0.1 * rng.standard_normal(
        flat.length
    )  # zeros hide mistakes
    weights = rng.standard_normal((len(given), *model.output_shape))
    exact = (weights, *_gradients(model, given, start, weights))
    for name, slot in flat.slots.items():
        _compare(
            model, given, start, exact, _Along(name, slot.start, slot.stop), rng, (step, rtol, atol)
        )
    if given.dtype.kind == "f":
        _compare(model, given, start, exact, None, rng, (step, rtol, atol))


class _Along:
    def __init__(self, name: str, start: int, stop: int) -> None:
        self.name, self.part = name, slice(start, stop)


def _compare(
    model: Model,
    x: Any,
    start: Any,
    exact: Any,
    along: _Along | None,
    rng: Any,
    limits: tuple[float, float, float],
) -> None:
    (step, rtol, atol), (weights, gradients, dx) = limits, exact
    size = x.size if along is None else along.part.stop - along.part.start
    single = np.zeros(size)
    single[rng.integers(size)] = 1
    for direction in (rng.standard_normal(size), single):
        slope = (
            float(dx.reshape(-1) @ direction)
            if along is None
            else float(gradients[along.part] @ direction)
        )
        losses = []
        for sign in (1, -1):
            values, inputs = start.copy(), x
            if along is None:
                inputs = x + sign * step * direction.reshape(x.shape)
            else:
                values[along.part] += sign * step * direction
            losses.append(_loss(model, inputs, values, weights))
        numeric = (losses[0] - losses[1]) / (2 * step)
        if not abs(numeric - slope) <= atol + rtol * max(abs(numeric), abs(slope)):
            what = "the input" if along is None else along.name
            raise GradientError(
                f"the gradient of {what} is {slope:.10g} along a direction, but the loss changes by {numeric:.10g}"
            )


def _loss(model: Model, x: Any, values: Any, weights: Any) -> float:
    model.parameters.values[...] = model.ops.to_device(values)
    y, _ = model.forward(model.ops.to_device(x), train=True)
    return float((model.ops.to_host(y) * weights).sum())


def _gradients(model: Model, x: Any, values: Any, weights: Any) -> tuple[Any, Any]:
    ops, flat = model.ops, model.parameters
    for layer in model.walk():
        layer.needs_input_gradient = True
    flat.values[...] = ops.to_device(values)
    flat.gradients[...] = ops.to_device(
        np.full(flat.length, np.nan)
    )  # every gradient must be written
    gradient: Any = ops.to_device(weights.copy())
    steps = []
    y: Any = ops.to_device(x)
    for layer in model.layers:
        y, step = layer.forward(y, train=True)
        steps.append(step)
    for step in reversed(steps):
        gradient = step(gradient)
    dx = np.zeros(x.shape) if gradient is None else ops.to_host(gradient)
    return ops.to_host(flat.gradients).copy(), np.array(dx)
