"""What a model is made of: parameters, floating-point operations, memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mpidl.nn import Layer, Model


@dataclass(frozen=True)
class Row:
    """One layer of a model.

    Attributes:
        name: Its name in the model.
        output: Shape of one output sample.
        parameters: Their number.
        flops: Floating-point operations of the forward pass for one sample.
        activation_bytes: Kept for one sample until the backward pass.
    """

    name: str
    output: tuple[int, ...]
    parameters: int
    flops: float
    activation_bytes: int


def summarize(model: Model) -> Iterator[Row]:
    """A row for each layer of the model; those inside others are counted with them."""
    shape = model.input_shape
    for layer in model.layers:
        output = layer.output_shape(shape)
        yield Row(
            layer.name,
            output,
            _count_parameters(model, layer),
            layer.flops(shape),
            layer.activation_elements(shape) * model.parameters.dtype.itemsize,
        )
        shape = output


def _count_parameters(model: Model, layer: Layer) -> int:
    slots = model.parameters.slots.items()
    return sum(slot.spec.size for name, slot in slots if name.startswith(f"{layer.name}."))


@dataclass(frozen=True)
class Totals:
    """Sums over the layers of a model; see Row."""

    parameters: int
    flops: float
    activation_bytes: int

    def training_flops(self, batch: int) -> float:
        """Forward and backward passes: the gradient of each product takes two more."""
        return 3 * self.flops * batch

    def memory(self, batch: int, states: int, itemsize: int = 4) -> int:
        """Bytes for training: parameters, gradients, optimizer state, activations, their gradients.

        Args:
            batch: Samples.
            states: Buffers of the optimizer (1 for momentum, 2 for Adam).
            itemsize: Bytes of a parameter.
        """
        return self.parameters * itemsize * (2 + states) + 2 * self.activation_bytes * batch


def sum_rows(rows: list[Row]) -> Totals:
    """Sums over the layers."""
    return Totals(
        sum(row.parameters for row in rows),
        sum(row.flops for row in rows),
        sum(row.activation_bytes for row in rows),
    )
