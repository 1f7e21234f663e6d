"""Test utilities for custom layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.backend import Array, Ops
from mpidl.nn import Layer, Model

Vector = NDArray[np.float64]


class GradientError(AssertionError):
    """A gradient does not agree with finite differences."""


def check_gradients(
    layers: Layer | Sequence[Layer],
    shape: tuple[int, ...],
    *,
    batch: int = 3,
    ops: Ops | None = None,
    inputs: Any = None,
    step: float = 1e-6,
    rtol: float = 1e-5,
    atol: float = 1e-7,
) -> None:
    """Compare the gradients of layers with central differences, in float64.

    Checks the derivatives of every parameter tensor and of the input along a random direction and
    with respect to one random element.

    Args:
        layers: One or more layers.
        shape: Shape of an input sample.
        batch: Number of samples.
        ops: The backend; by default the CPU.
        inputs: Inputs (n, *shape); by default normal random numbers. Integers have no gradient.
        step: Step of the differences; choose a smaller one for deep networks with ReLU, which have
            many kinks.
        rtol: Relative tolerance of the derivatives.
        atol: Absolute tolerance of the derivatives.

    Raises:
        GradientError: A gradient is wrong; names the tensor.
    """
    from mpidl.backend.numpy_ops import NumpyOps

    rng = np.random.default_rng(0)
    x = np.asarray(rng.standard_normal((batch, *shape)) if inputs is None else inputs)
    layers = [layers] if isinstance(layers, Layer) else layers
    model = Model(layers, shape, ops or NumpyOps(), dtype=np.float64)
    check = _Check(model, x, rng)
    dx, gradients = check.gradients()
    names: list[str | None] = [*model.parameters.slots]
    for name in names if x.dtype.kind != "f" else [*names, None]:
        exact = dx.reshape(-1) if name is None else gradients[check.part(name)]
        for direction in check.directions(exact.size):
            slope = float(exact @ direction)
            numeric = check.difference(name, step * direction) / step
            if not abs(numeric - slope) <= atol + rtol * max(abs(numeric), abs(slope)):
                raise GradientError(
                    f"the gradient of {name or 'the input'} is {slope:.10g} along a direction, "
                    f"but the loss changes by {numeric:.10g}"
                )


class _Check:
    """A model with random parameters whose loss is a weighted sum of its outputs."""

    def __init__(self, model: Model, x: NDArray[Any], rng: np.random.Generator) -> None:
        self.model = model
        self.ops = model.ops
        self.x = x
        self.rng = rng
        flat = model.parameters
        flat.initialize(0)
        noise = 0.1 * rng.standard_normal(flat.length)  # zero parameters would hide mistakes
        self.start: Vector = self.ops.to_host(flat.values) + noise
        self.weights = rng.standard_normal((len(x), *model.output_shape))

    def part(self, name: str) -> slice:
        """Range of a parameter in the flat buffer."""
        slot = self.model.parameters.slots[name]
        return slice(slot.start, slot.stop)

    def directions(self, size: int) -> Iterator[Vector]:
        """A random direction, and that of a random element."""
        single = np.zeros(size)
        single[self.rng.integers(size)] = 1
        yield from (self.rng.standard_normal(size), single)

    def gradients(self) -> tuple[Vector, Vector]:
        """Gradients of the input and of the flat buffer, by the backward pass."""
        ops, flat = self.ops, self.model.parameters
        for layer in self.model.walk():
            layer.needs_input_gradient = True
        flat.values[...] = ops.to_device(self.start)
        # a gradient that is not written shows as NaN
        flat.gradients[...] = ops.to_device(np.full(flat.length, np.nan))
        steps = []
        y: Array = ops.to_device(self.x)
        for layer in self.model.layers:
            y, step = layer.forward(y, train=True)
            steps.append(step)
        gradient: Array | None = ops.to_device(self.weights.copy())
        for step in reversed(steps):
            assert gradient is not None  # only the first layer may return None
            gradient = step(gradient)
        dx = np.zeros(self.x.shape) if gradient is None else ops.to_host(gradient)
        return np.array(dx), ops.to_host(flat.gradients).copy()

    def difference(self, name: str | None, move: Vector) -> float:
        """Half of the difference of the loss between both ends of a move.

        Args:
            name: The parameter that moves; None for the input.
            move: Half of the move, (size,).
        """
        losses = []
        for sign in (1, -1):
            values, x = self.start.copy(), self.x
            if name is None:
                x = x + sign * move.reshape(x.shape)
            else:
                values[self.part(name)] += sign * move
            losses.append(self._loss(x, values))
        return (losses[0] - losses[1]) / 2

    def _loss(self, x: NDArray[Any], values: Vector) -> float:
        self.model.parameters.values[...] = self.ops.to_device(values)
        y, _ = self.model.forward(self.ops.to_device(x), train=True)
        return float((self.ops.to_host(y) * self.weights).sum())
