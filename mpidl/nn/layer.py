"""The layer interface.

A layer declares its parameters for an input shape; its forward pass returns the output and a
closure that computes gradients.
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
# buffer; returns the gradient of the input, or None where it is not needed.
Backward = Callable[[Array], "Array | None"]


@dataclass
class Runtime:
    """State of a run that layers depend on; one per model, updated by the training loop.

    Attributes:
        activations: Activations of the current pass.
        seed: Seed of the run; like the next two part of the key of random masks.
        step: Number of the training step.
        micro_batch: Number of the micro-batch in its step, counted over all ranks, so that random
            masks do not depend on the number of ranks.
        reduce: Sums a float64 host array (n,) over the ranks in place; None on a single rank.
        recomputing: True while a forward pass is repeated for its gradients: running statistics
            must not be updated again.
        model: The model that owns the layers.
    """

    activations: Activations
    seed: int = 0
    step: int = 0
    micro_batch: int = 0
    reduce: Callable[[NDArray[Any]], None] | None = None
    recomputing: bool = False
    model: weakref.ref[Any] | None = None
    _device_key: Array | None = None
    _written: MaskKey | None = None

    @property
    def key(self) -> MaskKey:
        """The key of random masks: seed, step and micro-batch."""
        return self.seed, self.step, self.micro_batch

    @key.setter
    def key(self, value: MaskKey) -> None:
        self.seed, self.step, self.micro_batch = value

    def rng_key(self, ops: Ops) -> Array:
        """The key in memory that kernels read, (3,) int64: the same memory in every step."""
        if self._device_key is None:
            self._device_key = ops.xp.zeros(3, np.int64)
        if self.key != self._written:
            self._device_key[...] = ops.to_device(np.array(self.key, np.int64))
            self._written = self.key
        return self._device_key


class Layer(ABC):
    """Base class of layers. A layer object is used at one position of one model.

    Attributes:
        kind: Name of this type of layer in parameter names and checkpoints; every layer class
            defines it.
        name: Name of this layer, unique in the model.
        number: Index of this layer in the model; part of the key of random masks.
        workspace_name: Name of its workspace among the activations of a pass.
        needs_input_gradient: False for the layers before the first parameters of a model.
        has_relu: Whether the layer applies a ReLU to its output.
        needs_collective: Whether a training pass communicates with the other ranks.
        takes_ids: Whether the inputs are integers: indices of embeddings.
        capturable: Whether a CUDA graph can replay passes: they only launch kernels and matrix
            products, with the same arguments every time.
    """

    kind: str
    has_relu = False
    needs_collective = False
    takes_ids = False
    capturable = False

    def __init_subclass__(cls, *, base: bool = False, **kwargs: Any) -> None:
        """Check that the class defines `kind`, unless it is only a base class (`base=True`).

        Raises:
            ConfigError: It does not.
        """
        super().__init_subclass__(**kwargs)
        if not base and not isinstance(getattr(cls, "kind", None), str):
            raise ConfigError(
                f"the layer class {cls.__name__} does not define its kind",
                where=f"class {cls.__module__}.{cls.__qualname__}",
                remedy='name it as its parameters in checkpoints, for example kind = "my_layer"; '
                "or declare a base class with class Base(Layer, base=True)",
            )

    def __init__(self) -> None:
        self.name = self.kind
        self.number = 0
        self.workspace_name = self.kind
        self.needs_input_gradient = True
        self.runtime: Runtime
        self.ops: Ops
        self.parameters: FlatParameters

    @abstractmethod
    def output_shape(self, shape: Shape) -> Shape:
        """Shape of an output sample for input samples of `shape`.

        Raises:
            ShapeError: The layer does not accept such samples; see `shape_error`.
        """

    def declare(self, shape: Shape) -> list[ParameterSpec]:
        """Parameters for input samples of `shape`, named without the name of the layer."""
        return []

    def bind(self, ops: Ops, parameters: FlatParameters, runtime: Runtime) -> None:
        """Attach the layer to a model.

        Args:
            ops: The backend.
            parameters: The flat buffers, which hold the declared parameters under `<layer
                name>.<parameter name>`.
            runtime: The runtime of the model.

        Raises:
            ConfigError: The layer is part of a model already; two positions would share its name
                and its activations.
        """
        before: Runtime | None = getattr(self, "runtime", None)
        if before is not None and (
            before is runtime or (before.model is not None and before.model() is not None)
        ):
            raise ConfigError(
                f"the same {type(self).__name__} object is used twice"
                + ("" if before is runtime else ", in two models"),
                where=f"layer {self.name}",
                remedy="create one object per position: [Dense(8), ReLU(), Dense(8), ReLU()]",
            )
        self.ops = ops
        self.parameters = parameters
        self.runtime = runtime
        self.workspace_name = self.name

    @property
    def workspace(self) -> Workspace:
        """Arrays of this layer in the current pass; their memory is reused in every step."""
        return self.runtime.activations.workspace(self.workspace_name)

    def children(self) -> list[tuple[str, Layer]]:
        """Layers inside this one and their names."""
        return []

    def walk(self) -> Iterator[Layer]:
        """This layer and all layers inside it."""
        yield self
        for _, child in self.children():
            yield from child.walk()

    def flops(self, shape: Shape) -> float:
        """Floating-point operations of the forward pass for one sample of `shape`.

        Elementwise operations, which are bound by memory bandwidth, are not counted.
        """
        return 0.0

    def activation_elements(self, shape: Shape) -> int:
        """Number of elements stored per sample of `shape` until the backward pass."""
        return math.prod(self.output_shape(shape))

    @abstractmethod
    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        """Compute the output of a batch.

        Args:
            x: The batch, (n, *input shape).
            train: Whether this is a training pass: random masks are drawn and running statistics
                updated.

        Returns:
            The output and the backward closure, which maps its gradient to that of `x`.
        """

    def value(self, name: str) -> Array:
        """View of the parameter `name` in the compute dtype."""
        return self.parameters.compute_value(f"{self.name}.{name}")

    def gradient(self, name: str) -> Array:
        """View of the gradient of the parameter `name`, for the backward closure to fill."""
        return self.parameters.gradient(f"{self.name}.{name}")

    def shape_error(self, shape: Shape, needed: str) -> ShapeError:
        """Error for input samples that the layer does not accept.

        Args:
            shape: Shape of the samples.
            needed: What the layer needs, as a clause.
        """
        return ShapeError(
            f"input samples have shape {shape}, but {needed}",
            where=f"layer {self.name}",
            remedy="change the model's layers or its input shape",
        )


def number_layers(layers: Sequence[Layer]) -> list[str]:
    """Names of layers by kind and number: dense1, relu1, dense2."""
    numbers: Counter[str] = Counter()
    names = []
    for layer in layers:
        numbers[layer.kind] += 1
        names.append(f"{layer.kind}{numbers[layer.kind]}")
    return names
