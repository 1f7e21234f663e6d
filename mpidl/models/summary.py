"""Summary of a model: parameters, floating-point operations and memory of its layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mpidl.nn import Layer, Model


@dataclass(frozen=True)
class Row:
    """One layer of a model.

    Attributes:
        name: Name of the layer.
        output: Shape of an output sample.
        parameters: Number of parameters.
        flops: Floating-point operations of the forward pass per sample.
        activation_bytes: Memory per sample until the backward pass.
    """

    name: str
    output: tuple[int, ...]
    parameters: int
    flops: float
    activation_bytes: int


def summarize(model: Model) -> Iterator[Row]:
    """One row per layer of the model; nested layers are counted with the layer around them."""
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
        """Of forward and backward passes: the gradient of a product takes two products."""
        return 3 * self.flops * batch

    def memory(self, batch: int, states: int, itemsize: int = 4) -> int:
        """Bytes needed for training: parameters, gradients, optimizer state, activations.

        Args:
            batch: Number of samples.
            states: Number of buffers of the optimizer (1 for momentum, 2 for Adam).
            itemsize: Bytes per parameter.
        """
        return self.parameters * itemsize * (2 + states) + 2 * self.activation_bytes * batch


def sum_rows(rows: list[Row]) -> Totals:
    """Sums over the layers."""
    return Totals(
        sum(row.parameters for row in rows),
        sum(row.flops for row in rows),
        sum(row.activation_bytes for row in rows),
    )
