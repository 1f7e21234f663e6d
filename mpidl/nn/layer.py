"""What a layer is: it declares parameters for an input shape, and its forward returns the output and a backward closure."""

from __future__ import annotations

import math
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.backend import Array, Ops, Workspace
from mpidl.errors import ConfigError, ShapeError
from mpidl.nn.activations import Activations, MaskKey
from mpidl.nn.parameters import FlatParameters, ParameterSpec

Shape = tuple[int, ...]
# Takes the gradient of the output, which it may overwrite; writes parameter gradients into the flat buffer; returns the
# gradient of the input, or None where nobody needs it.
Backward = Callable[[Array], "Array | None"]


@dataclass
class Runtime:
    """What layers need to know of the run around them; one for each model, kept by whoever trains it.

    seed, step, part: key of random masks; part numbers the micro-batches of a step over all ranks, so that masks do not depend
    on the number of ranks. reduce: sums a float64 host array (n,) over the ranks, in place; None on one rank. recomputing:
    a forward pass is done again for its gradients, so running statistics stay as they are. activations: of the pass that is
    going on; model: whose layers these are.
    """

    activations: Activations
    seed: int = 0
    step: int = 0
    part: int = 0
    reduce: Callable[[NDArray[Any]], None] | None = None
    recomputing: bool = False
    model: weakref.ref[Any] | None = None
    _drawn: Array = None
    _written: MaskKey | None = None

    @property
    def key(self) -> MaskKey:
        """seed, step and part."""
        return self.seed, self.step, self.part

    @key.setter
    def key(self, value: MaskKey) -> None:
        self.seed, self.step, self.part = value

    def drawn(self, ops: Ops) -> Array:
        """seed, step and part where kernels read them: (3,) int64, always the same memory."""
        if self._drawn is None:
            self._drawn = ops.xp.zeros(3, np.int64)
        if self.key != self._written:
            self._drawn[...], self._written = ops.to_device(np.array(self.key, np.int64)), self.key
        return self._drawn


class Layer(ABC):
    """A layer at one place of one model. `name` is unique in a model; `needs_input_gradient` is False for its first layer."""

    kind: str
    has_relu = False  # whether the output went through a ReLU
    needs_collective = False  # whether a training pass waits for the other ranks
    takes_ids = False  # whether the inputs are whole numbers: rows of a table
    capturable = False  # whether passes only launch kernels of the table and products, with the same arguments every time

    def __init__(self) -> None:
        self.name = self.kind
        self.number = 0  # unique in the model: part of the key of random masks
        self.runtime: Runtime
        self.needs_input_gradient = True
        self.ops: Ops
        self.memory = self.kind  # the name of its workspace in the memory of a pass
        self.parameters: FlatParameters

    @abstractmethod
    def output_shape(self, shape: Shape) -> Shape:
        """The shape of one output sample for one input sample of `shape`; raises ShapeError if it cannot be used."""

    def declare(self, shape: Shape) -> list[ParameterSpec]:
        """The parameters for input samples of `shape`; names without the layer's name."""
        return []

    def bind(self, ops: Ops, parameters: FlatParameters, runtime: Runtime) -> None:
        """Receive the backend and the flat buffer that holds the declared parameters under `<layer name>.<name>`.

        Raises ConfigError for a layer that stands somewhere already: its names and activations would be those of both places.
        """
        before: Runtime | None = getattr(self, "runtime", None)
        if before is not None and (
            before is runtime or (before.model is not None and before.model() is not None)
        ):
            raise ConfigError(
                f"this {type(self).__name__} object stands at two places "
                + ("of the model" if before is runtime else "of two models"),
                where=f"layer {self.name}",
                remedy="make an object for each place: [Dense(8), ReLU(), Dense(8), ReLU()]",
            )
        self.ops, self.parameters, self.runtime, self.memory = ops, parameters, runtime, self.name

    @property
    def space(self) -> Workspace:
        """Arrays of this layer in the memory of the pass that is going on: used again in every step."""
        return self.runtime.activations.space(self.memory)

    def children(self) -> list[tuple[str, Layer]]:
        """Layers inside this one, with their names in it."""
        return []

    def walk(self) -> Iterator[Layer]:
        """This layer and all layers inside it."""
        yield self
        for _, child in self.children():
            yield from child.walk()

    def flops(self, shape: Shape) -> float:
        """Floating-point operations of the forward pass for one sample of `shape`, without those that only pass over memory."""
        return 0.0

    def stored(self, shape: Shape) -> int:
        """Elements that are kept for one sample of `shape` until the backward pass."""
        return math.prod(self.output_shape(shape))

    @abstractmethod
    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        """Output for a batch `x` (n, *input shape), and the function that propagates its gradient back."""

    def _value(self, name: str) -> Array:
        return self.parameters.compute_value(f"{self.name}.{name}")

    def _gradient(self, name: str) -> Array:
        return self.parameters.gradient(f"{self.name}.{name}")

    def _refuse(self, shape: Shape, wanted: str) -> ShapeError:
        return ShapeError(
            f"input samples have shape {shape}, but {wanted}",
            where=f"layer {self.name}",
            remedy="change the model's layers or its input shape",
        )
