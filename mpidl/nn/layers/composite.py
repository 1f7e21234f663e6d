"""Containers: layers made of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mpidl.backend import Array, Ops
from mpidl.errors import ShapeError
from mpidl.nn.fuse import fuse
from mpidl.nn.layer import Backward, Layer, Runtime, Shape, number_layers
from mpidl.nn.parameters import FlatParameters, ParameterSpec


class Composite(Layer, base=True):
    """Base of layers that contain layers.

    Args:
        parts: The inner layers.
        names: Their names; by default kind and number.

    Attributes:
        is_parallel: Whether every part receives the input of the layer and their outputs are
            combined; otherwise each part receives the output of the one before it.
    """

    capturable = True
    is_parallel = True

    def __init__(self, parts: Sequence[Layer], names: Sequence[str] | None = None) -> None:
        super().__init__()
        self.parts = list(zip(names or number_layers(parts), parts, strict=True))

    def children(self) -> list[tuple[str, Layer]]:
        return self.parts

    def _input_shapes(self, shape: Shape) -> list[Shape]:
        """Shape of the input of each part."""
        return [shape] * len(self.parts)

    def _part_shape(self, name: str, part: Layer, shape: Shape) -> Shape:
        """Output shape of a part; sets its name first, for error messages."""
        part.name = f"{self.name}.{name}"
        return part.output_shape(shape)

    def declare(self, shape: Shape) -> list[ParameterSpec]:
        return [
            replace(spec, name=f"{name}.{spec.name}")
            for (name, part), before in zip(self.parts, self._input_shapes(shape), strict=True)
            for spec in part.declare(before)
        ]

    def flops(self, shape: Shape) -> float:
        shapes = self._input_shapes(shape)
        return sum(part.flops(before) for (_, part), before in zip(self.parts, shapes, strict=True))

    def activation_elements(self, shape: Shape) -> int:
        own = super().activation_elements(shape) if self.is_parallel else 0
        shapes = self._input_shapes(shape)
        return own + sum(
            part.activation_elements(before)
            for (_, part), before in zip(self.parts, shapes, strict=True)
        )

    def bind(self, ops: Ops, parameters: FlatParameters, runtime: Runtime) -> None:
        super().bind(ops, parameters, runtime)
        needed = self.needs_input_gradient
        for name, part in self.parts:
            part.name = f"{self.name}.{name}"
            part.needs_input_gradient = needed
            part.bind(ops, parameters, runtime)
            if not self.is_parallel:
                needed = needed or any(key.startswith(f"{part.name}.") for key in parameters.slots)


class Sequential(Composite):
    """A sequence of layers as one layer.

    Args:
        layers: The layers.
        names: Their names; by default kind and number.
    """

    kind = "sequential"
    is_parallel = False

    def __init__(self, layers: Sequence[Layer], names: Sequence[str] | None = None) -> None:
        super().__init__(layers, names)
        fuse(layers)

    def _input_shapes(self, shape: Shape) -> list[Shape]:
        shapes = [shape]
        for name, part in self.parts[:-1]:
            shapes.append(self._part_shape(name, part, shapes[-1]))
        return shapes[: len(self.parts)]

    def output_shape(self, shape: Shape) -> Shape:
        for name, part in self.parts:
            shape = self._part_shape(name, part, shape)
        return shape

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        steps: list[Backward] = []
        for _, part in self.parts:
            x, step = part.forward(x, train=train)
            steps.append(step)

        def backward(dy: Array) -> Array | None:
            gradient: Array | None = dy
            for step in reversed(steps):
                if gradient is None:
                    break
                gradient = step(gradient)
            return gradient

        return x, backward


def as_layer(layers: Layer | Sequence[Layer]) -> Layer:
    """The layer itself, or a `Sequential` of several layers."""
    return layers if isinstance(layers, Layer) else Sequential(layers)


class Residual(Composite):
    """y = act(body(x) + shortcut(x)) (He et al., 2016).

    Args:
        body: One or more layers.
        shortcut: One or more layers with the same output shape; by default the identity.
        relu: Apply a ReLU to the sum.
    """

    kind = "residual"

    def __init__(
        self,
        body: Layer | Sequence[Layer],
        shortcut: Layer | Sequence[Layer] | None = None,
        *,
        relu: bool = False,
    ) -> None:
        if shortcut is None:
            super().__init__([as_layer(body)], ["body"])
        else:
            super().__init__([as_layer(body), as_layer(shortcut)], ["body", "shortcut"])
        self.has_relu = relu

    def output_shape(self, shape: Shape) -> Shape:
        shapes = [self._part_shape(name, part, shape) for name, part in self.parts]
        if len(shapes) == 1:
            shapes.append(shape)
        if shapes[0] != shapes[1]:
            raise ShapeError(
                f"the output of the body has shape {shapes[0]}, that of the shortcut {shapes[1]}",
                where=f"layer {self.name}",
                remedy="use a shortcut with the output shape of the body, for example a 1x1 "
                "convolution with its stride",
            )
        return shapes[0]

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        body, body_back = self.parts[0][1].forward(x, train=train)
        other, other_back = (
            self.parts[1][1].forward(x, train=train) if len(self.parts) > 1 else (x, None)
        )
        y = self.workspace.get("y", body.shape, body.dtype)
        self.ops.add(body, other, y, relu=self.has_relu)

        def backward(dy: Array) -> Array | None:
            if self.has_relu:
                self.ops.relu_backward(dy, y, dy)
            kept = self.workspace.get(
                "dy", dy.shape, dy.dtype
            )  # the body may overwrite its gradient
            kept[...] = dy
            dx = body_back(dy)
            shortcut_dx = other_back(kept) if other_back else kept
            if dx is None or shortcut_dx is None or not self.needs_input_gradient:
                return None
            self.ops.add(dx, shortcut_dx.reshape(dx.shape), dx, relu=False)
            return dx

        return y, backward


class Concat(Composite):
    """Concatenation of branches along the last axis; all branches receive the same input.

    Args:
        parts: The branches; `Identity` for the input itself.
        names: Their names; by default kind and number.
    """

    kind = "concat"

    def output_shape(self, shape: Shape) -> Shape:
        shapes = [self._part_shape(name, part, shape) for name, part in self.parts]
        if any(other[:-1] != shapes[0][:-1] for other in shapes):
            raise ShapeError(
                f"the outputs of the branches have shapes {shapes}",
                where=f"layer {self.name}",
                remedy="make all sizes but the last equal",
            )
        return (*shapes[0][:-1], sum(other[-1] for other in shapes))

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        results = [part.forward(x, train=train) for _, part in self.parts]
        widths = [output.shape[-1] for output, _ in results]
        y = self.workspace.get("y", (*results[0][0].shape[:-1], sum(widths)), x.dtype)
        edges = [sum(widths[:index]) for index in range(len(widths) + 1)]
        for index, (output, _) in enumerate(results):
            y[..., edges[index] : edges[index + 1]] = output

        def backward(dy: Array) -> Array | None:
            total: Array | None = None
            for index, (output, step) in enumerate(results):
                part = self.workspace.get(f"dy{index}", output.shape, output.dtype)
                part[...] = dy[..., edges[index] : edges[index + 1]]
                gradient = step(part)
                if gradient is None or not self.needs_input_gradient:
                    continue
                if total is None:
                    total = self.workspace.get("dx", x.shape, x.dtype)
                    total[...] = gradient
                else:
                    self.ops.add(total, gradient.reshape(total.shape), total, relu=False)
            return total

        return y, backward


class Identity(Layer):
    """y = x."""

    kind = "identity"

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    def activation_elements(self, shape: Shape) -> int:
        return 0

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        return x, lambda dy: dy
