"""What a model is made of: parameters, floating-point operations, memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mpidl.nn import Layer, Model


@dataclass(frozen=True)
class Row:
    """One layer. flops: of the forward pass for one sample; stored: bytes kept for one sample until the backward pass."""

    name: str
    output: tuple[int, ...]
    parameters: int
    flops: float
    stored: int


def rows_of(model: Model) -> Iterator[Row]:
    """A row for each layer of the model; those inside others are counted with them."""
    shape = model.input_shape
    for layer in model.layers:
        after = layer.output_shape(shape)
        yield Row(
            layer.name,
            after,
            _count(model, layer),
            layer.flops(shape),
            layer.stored(shape) * model.parameters.dtype.itemsize,
        )
        shape = after


def _count(model: Model, layer: Layer) -> int:
    return sum(
        slot.spec.size
        for name, slot in model.parameters.slots.items()
        if name.startswith(f"{layer.name}.")
    )


@dataclass(frozen=True)
class Totals:
    """Of a whole model. memory: bytes for training with a batch: parameters, gradients, optimizer state, activations and
    their gradients."""

    parameters: int
    flops: float
    stored: int

    def training_flops(self, batch: int) -> float:
        """Forward and backward: the gradient of each product takes two more."""
        return 3 * self.flops * batch

    def memory(self, batch: int, states: int, itemsize: int = 4) -> int:
        """states: buffers of the optimizer (1 for momentum, 2 for Adam)."""
        return self.parameters * itemsize * (2 + states) + 2 * self.stored * batch


def totals_of(rows: list[Row]) -> Totals:
    """Sums over the layers."""
    return Totals(
        sum(r.parameters for r in rows), sum(r.flops for r in rows), sum(r.stored for r in rows)
    )
