"""What a layer is: it declares parameters for an input shape; its forward pass returns the output
and a closure that propagates the gradient back.
"""

from __future__ import annotations

import math
import weakref
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.backend import Array, Ops, Workspace
from mpidl.errors import ConfigError, ShapeError
from mpidl.nn.activations import Activations, MaskKey
from mpidl.nn.parameters import FlatParameters, ParameterSpec

Shape = tuple[int, ...]
# Takes the gradient of the output, which it may overwrite; writes parameter gradients into the flat
# buffer; returns the gradient of the input, or None where nobody needs it.
Backward = Callable[[Array], "Array | None"]


@dataclass
class Runtime:
    """What layers need to know of the run around them; one for each model, kept by whoever trains.

    Attributes:
        activations: Of the current pass.
        seed: Part of the key of random masks.
        step: Part of the key of random masks.
        micro_batch: Part of the key of random masks: the number of the micro-batch in its step over
            all ranks, so that masks do not depend on the number of ranks.
        reduce: Sums a float64 host array (n,) over the ranks, in place; None on one rank.
        recomputing: Whether a forward pass is repeated for its gradients, so that running
            statistics stay as they are.
        model: Whose layers these are.
    """

    activations: Activations
    seed: int = 0
    step: int = 0
    micro_batch: int = 0
    reduce: Callable[[NDArray[Any]], None] | None = None
    recomputing: bool = False
    model: weakref.ref[Any] | None = None
    _device_key: Array = None
    _written: MaskKey | None = None

    @property
    def key(self) -> MaskKey:
        """The key of random masks: seed, step and micro-batch."""
        return self.seed, self.step, self.micro_batch

    @key.setter
    def key(self, value: MaskKey) -> None:
        self.seed, self.step, self.micro_batch = value

    def rng_key(self, ops: Ops) -> Array:
        """The key where kernels read it: (3,) int64, always the same memory."""
        if self._device_key is None:
            self._device_key = ops.xp.zeros(3, np.int64)
        if self.key != self._written:
            self._device_key[...] = ops.to_device(np.array(self.key, np.int64))
            self._written = self.key
        return self._device_key


class Layer(ABC):
    """A layer at one place of one model.

    Attributes:
        kind: What parameter names and checkpoints call it. Subclasses must define it.
        name: Unique in the model.
        number: Unique in the model; part of the key of random masks.
        memory: The name of its workspace in the memory of a pass.
        needs_input_gradient: False for the first layers of a model, up to the first parameters.
        has_relu: Whether the output has passed through a ReLU.
        needs_collective: Whether a training pass waits for the other ranks.
        takes_ids: Whether the inputs are whole numbers: rows of a table.
        capturable: Whether passes only launch kernels of the table and products, with the same
            arguments every time, so that a CUDA graph can replay them.
    """

    kind: str
    has_relu = False
    needs_collective = False
    takes_ids = False
    capturable = False

    def __init_subclass__(cls, *, base: bool = False, **kwargs: Any) -> None:
        """Refuse a layer without a `kind`; base: the class is a base of layers, not a layer."""
        super().__init_subclass__(**kwargs)
        if not base and not isinstance(getattr(cls, "kind", None), str):
            raise ConfigError(
                f"the layer class {cls.__name__} has no kind",
                where=f"class {cls.__module__}.{cls.__qualname__}",
                remedy='add the name of its parameters in checkpoints: kind = "my_layer"',
            )

    def __init__(self) -> None:
        self.name = self.kind
        self.number = 0
        self.memory = self.kind
        self.needs_input_gradient = True
        self.runtime: Runtime
        self.ops: Ops
        self.parameters: FlatParameters

    @abstractmethod
    def output_shape(self, shape: Shape) -> Shape:
        """The shape of one output sample for one input sample of `shape`.

        Raises:
            ShapeError: Such samples cannot be used; see `shape_error`.
        """

    def declare(self, shape: Shape) -> list[ParameterSpec]:
        """The parameters for input samples of `shape`; names without the layer's name."""
        return []

    def bind(self, ops: Ops, parameters: FlatParameters, runtime: Runtime) -> None:
        """Receive the backend and the flat buffer that holds the declared parameters.

        Args:
            ops: The backend.
            parameters: Has each parameter under `<layer name>.<parameter name>`.
            runtime: Of the model.

        Raises:
            ConfigError: The layer is part of a model already: its names and activations would be
                those of both places.
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
        self.ops = ops
        self.parameters = parameters
        self.runtime = runtime
        self.memory = self.name

    @property
    def space(self) -> Workspace:
        """Arrays of this layer in the memory of the current pass, reused in every step."""
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
        """Floating-point operations of the forward pass for one sample of `shape`.

        Operations that only pass over memory are not counted.
        """
        return 0.0

    def activation_elements(self, shape: Shape) -> int:
        """Elements that are kept for one sample of `shape` until the backward pass."""
        return math.prod(self.output_shape(shape))

    @abstractmethod
    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        """One forward pass.

        Args:
            x: (n, *input shape), the batch.
            train: Whether it is a pass of training: masks are drawn, statistics are updated.

        Returns:
            The output, and the function that propagates its gradient back.
        """

    def value(self, name: str) -> Array:
        """The parameter `name` of this layer, in the dtype that it computes with; a view."""
        return self.parameters.compute_value(f"{self.name}.{name}")

    def gradient(self, name: str) -> Array:
        """The gradient of the parameter `name` of this layer, to be written; a view."""
        return self.parameters.gradient(f"{self.name}.{name}")

    def shape_error(self, shape: Shape, needed: str) -> ShapeError:
        """The error for input samples that the layer cannot use.

        Args:
            shape: Of the samples.
            needed: What the layer needs, a clause.
        """
        return ShapeError(
            f"input samples have shape {shape}, but {needed}",
            where=f"layer {self.name}",
            remedy="change the model's layers or its input shape",
        )


def number_layers(layers: Sequence[Layer]) -> list[str]:
    """Names by kind and number: dense1, relu1, dense2."""
    numbers: Counter[str] = Counter()
    names = []
    for layer in layers:
        numbers[layer.kind] += 1
        names.append(f"{layer.kind}{numbers[layer.kind]}")
    return names
