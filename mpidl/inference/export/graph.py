"""An ONNX graph that is built operation by operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpidl.extras import load_extra
from mpidl.nn import Layer

Shape = tuple[int, ...]
BATCH = "batch"  # name of the first axis, of any size
ACTIVITY = "exporting to ONNX"


class Value(NamedTuple):
    """A tensor of the graph.

    Attributes:
        name: In the graph.
        shape: Of one sample: without the first axis, the batch.
    """

    name: str
    shape: Shape


class Graph:
    """Nodes and constants of an ONNX graph.

    Attributes:
        scope: Name of what is being converted: nodes and their outputs are called
            `<scope>/<operator>_<number>`.
        bytes: Size of all constants.
    """

    def __init__(self) -> None:
        self._onnx = load_extra("onnx", ACTIVITY)
        self.scope = ""
        self.bytes = 0
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._shared: dict[tuple[int, ...], str] = {}

    def _name(self, kind: str) -> str:
        return f"{self.scope}/{kind}_{len(self._nodes) + len(self._constants)}"

    def constant(self, array: NDArray[Any]) -> str:
        """Name of a constant; floating-point numbers become float32."""
        held = np.array(array, np.float32 if array.dtype.kind == "f" else array.dtype, order="C")
        name = self._name("constant")
        self.bytes += held.nbytes
        self._constants.append(self._onnx.numpy_helper.from_array(held, name))
        return name

    def integers(self, *values: int) -> str:
        """Name of a constant (len(values),) int64: axes or a shape. The same ones are shared."""
        if values not in self._shared:
            self._shared[values] = self.constant(np.array(values, np.int64))
        return self._shared[values]

    def node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node with one output; returns the name of that."""
        return self.nodes(operator, inputs, 1, **attributes)[0]

    def nodes(
        self, operator: str, inputs: Sequence[str], count: int, **attributes: Any
    ) -> list[str]:
        """Add a node with `count` outputs, of which "" is not made; returns their names."""
        base = self._name(operator)
        outputs = [base if index == 0 else f"{base}.{index}" for index in range(count)]
        made = self._onnx.helper.make_node(operator, list(inputs), outputs, base, **attributes)
        self._nodes.append(made)
        return outputs

    def apply(self, operator: str, x: Value, *others: str, **attributes: Any) -> Value:
        """An operation that keeps the shape of its first operand."""
        return Value(self.node(operator, [x.name, *others], **attributes), x.shape)

    def transpose(self, name: str, *order: int) -> str:
        """A tensor with its axes in another order."""
        return self.node("Transpose", [name], perm=order)

    def reshape(self, name: str, *shape: int) -> str:
        """A tensor in another shape; -1: what is left."""
        return self.node("Reshape", [name, self.integers(*shape)])

    def as_samples(self, x: Value, shape: Shape) -> Value:
        """Samples in another shape."""
        return x if x.shape == shape else Value(self.reshape(x.name, -1, *shape), shape)

    def cast(self, name: str, dtype: Any) -> str:
        """A tensor of another dtype."""
        return self.node("Cast", [name], to=self._code(dtype))

    def _code(self, dtype: Any) -> int:
        return int(self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def input(self, name: str, shape: Shape, dtype: Any) -> Value:
        """An input of the graph, (batch, *shape)."""
        make = self._onnx.helper.make_tensor_value_info
        self._inputs.append(make(name, self._code(dtype), [BATCH, *shape]))
        return Value(name, shape)

    def output(self, name: str, value: Value, dtype: Any) -> None:
        """An output of the graph, (batch, *shape)."""
        self._nodes.append(self._onnx.helper.make_node("Identity", [value.name], [name], name))
        make = self._onnx.helper.make_tensor_value_info
        self._outputs.append(make(name, self._code(dtype), [BATCH, *value.shape]))

    def finish(self, name: str) -> Any:
        """The `onnx.GraphProto`."""
        return self._onnx.helper.make_graph(
            self._nodes, name, self._inputs, self._outputs, self._constants
        )


def weights(layer: Layer, name: str) -> NDArray[Any]:
    """A parameter of a layer on the host."""
    value = layer.parameters.value(f"{layer.name}.{name}")
    return np.asarray(layer.ops.to_host(value))
