"""What a layer is: it declares parameters for an input shape, and its forward returns the output and a backward closure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from mpidl.backend import Array, Ops, Workspace
from mpidl.errors import ShapeError
from mpidl.nn.parameters import FlatParameters, ParameterSpec

Shape = tuple[int, ...]
# Takes the gradient of the output, which it may overwrite; writes parameter gradients into the flat buffer; returns the
# gradient of the input, or None where nobody needs it.
Backward = Callable[[Array], "Array | None"]


class Layer(ABC):
    """A layer. `name` is unique in a model; `needs_input_gradient` is False for the first layer of a model."""

    kind: str
    has_relu = False  # whether the output went through a ReLU

    def __init__(self) -> None:
        self.name = self.kind
        self.needs_input_gradient = True
        self.ops: Ops
        self.space: Workspace
        self.parameters: FlatParameters

    @abstractmethod
    def output_shape(self, shape: Shape) -> Shape:
        """The shape of one output sample for one input sample of `shape`; raises ShapeError if it cannot be used."""

    def declare(self, shape: Shape) -> list[ParameterSpec]:
        """The parameters for input samples of `shape`; names without the layer's name."""
        return []

    def bind(self, ops: Ops, parameters: FlatParameters) -> None:
        """Receive the backend and the flat buffer that holds the declared parameters under `<layer name>.<name>`."""
        self.ops, self.parameters, self.space = ops, parameters, ops.workspace()

    @abstractmethod
    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        """Output for a batch `x` (n, *input shape), and the function that propagates its gradient back."""

    def _value(self, name: str) -> Array:
        return self.parameters.value(f"{self.name}.{name}")

    def _gradient(self, name: str) -> Array:
        return self.parameters.gradient(f"{self.name}.{name}")

    def _refuse(self, shape: Shape, wanted: str) -> ShapeError:
        return ShapeError(
            f"input samples have shape {shape}, but {wanted}",
            where=f"layer {self.name}",
            remedy="change the model's layers or its input shape",
        )
