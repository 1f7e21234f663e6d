"""Layers made of layers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from mpidl.backend import Array, Ops
from mpidl.errors import ShapeError
from mpidl.nn.layer import Backward, Layer, Runtime, Shape
from mpidl.nn.layers.pool import MaxPool2D
from mpidl.nn.parameters import FlatParameters, ParameterSpec


class Composite(Layer):
    """Base of layers with layers inside; those are named by kind and number, or as `names` says.

    joins: whether parts stand side by side and their outputs are joined in memory of the layer; else they follow one another.
    """

    capturable = True

    joins = True

    def __init__(self, parts: Sequence[Layer], names: Sequence[str] | None = None) -> None:
        super().__init__()
        numbers: Counter[str] = Counter()
        self.parts: list[tuple[str, Layer]] = []
        for index, part in enumerate(parts):
            numbers[part.kind] += 1
            self.parts.append((names[index] if names else f"{part.kind}{numbers[part.kind]}", part))

    def children(self) -> list[tuple[str, Layer]]:
        return self.parts

    def _inputs(self, shape: Shape) -> list[Shape]:
        """The shape that each part receives: that of the layer itself, unless parts follow one another."""
        return [shape] * len(self.parts)

    def _named(self, name: str, part: Layer, shape: Shape) -> Shape:
        part.name = f"{self.name}.{name}"
        return part.output_shape(shape)

    def declare(self, shape: Shape) -> list[ParameterSpec]:
        return [
            replace(spec, name=f"{name}.{spec.name}")
            for (name, part), before in zip(self.parts, self._inputs(shape), strict=True)
            for spec in part.declare(before)
        ]

    def flops(self, shape: Shape) -> float:
        return sum(
            part.flops(before)
            for (_, part), before in zip(self.parts, self._inputs(shape), strict=True)
        )

    def stored(self, shape: Shape) -> int:
        own = super().stored(shape) if self.joins else 0
        return own + sum(
            part.stored(before)
            for (_, part), before in zip(self.parts, self._inputs(shape), strict=True)
        )

    def bind(self, ops: Ops, parameters: FlatParameters, runtime: Runtime) -> None:
        super().bind(ops, parameters, runtime)
        needed = self.needs_input_gradient
        for name, part in self.parts:
            part.name = f"{self.name}.{name}"
            part.needs_input_gradient = needed
            part.bind(ops, parameters, runtime)
            if not self.joins:
                needed = needed or any(key.startswith(f"{part.name}.") for key in parameters.slots)


class Sequential(Composite):
    """Layers one after another, as one layer."""

    kind, joins = "seq", False

    def __init__(self, layers: Sequence[Layer], names: Sequence[str] | None = None) -> None:
        super().__init__(layers, names)
        for (_, before), (_, layer) in zip(self.parts, self.parts[1:], strict=False):
            if isinstance(layer, MaxPool2D):
                layer.follow(before)

    def _inputs(self, shape: Shape) -> list[Shape]:
        shapes = [shape]
        for name, part in self.parts[:-1]:
            shapes.append(self._named(name, part, shapes[-1]))
        return shapes[: len(self.parts)]

    def output_shape(self, shape: Shape) -> Shape:
        for name, part in self.parts:
            shape = self._named(name, part, shape)
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


class Residual(Composite):
    """y = act(body(x) + shortcut(x)) (He et al., 2016); without a shortcut it is x itself; act is ReLU where relu=True."""

    kind = "res"

    def __init__(
        self,
        body: Layer | Sequence[Layer],
        shortcut: Layer | Sequence[Layer] | None = None,
        *,
        relu: bool = False,
    ) -> None:
        parts = [body if isinstance(body, Layer) else Sequential(body)]
        if shortcut is not None:
            parts.append(shortcut if isinstance(shortcut, Layer) else Sequential(shortcut))
        super().__init__(parts, ["body", "shortcut"][: len(parts)])
        self.has_relu = relu

    def output_shape(self, shape: Shape) -> Shape:
        shapes = [self._named(name, part, shape) for name, part in self.parts]
        if len(shapes) == 1:
            shapes.append(shape)
        if shapes[0] != shapes[1]:
            raise ShapeError(
                f"the body gives shape {shapes[0]}, the shortcut {shapes[1]}",
                where=f"layer {self.name}",
                remedy="give a shortcut that ends in the body's shape (a 1x1 convolution with its stride, say)",
            )
        return shapes[0]

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        body, body_back = self.parts[0][1].forward(x, train=train)
        other, other_back = (
            self.parts[1][1].forward(x, train=train) if len(self.parts) > 1 else (x, None)
        )
        y = self.space.get("y", body.shape, body.dtype)
        self.ops.add(body, other, y, relu=self.has_relu)

        def backward(dy: Array) -> Array | None:
            if self.has_relu:
                self.ops.relu_backward(dy, y, dy)
            kept = self.space.get("dy", dy.shape, dy.dtype)  # the body may overwrite its gradient
            kept[...] = dy
            direct = body_back(dy)
            around = other_back(kept) if other_back else kept
            if direct is None or around is None or not self.needs_input_gradient:
                return None
            self.ops.add(direct, around.reshape(direct.shape), direct, relu=False)
            return direct

        return y, backward


class Concat(Composite):
    """Branches of the same input, side by side along the last axis; an empty branch (`Identity`) passes the input on."""

    kind = "concat"

    def output_shape(self, shape: Shape) -> Shape:
        shapes = [self._named(name, part, shape) for name, part in self.parts]
        if any(other[:-1] != shapes[0][:-1] for other in shapes):
            raise ShapeError(
                f"the branches give shapes {shapes}",
                where=f"layer {self.name}",
                remedy="all but the last extent must be equal",
            )
        return (*shapes[0][:-1], sum(other[-1] for other in shapes))

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        results = [part.forward(x, train=train) for _, part in self.parts]
        widths = [output.shape[-1] for output, _ in results]
        y = self.space.get("y", (*results[0][0].shape[:-1], sum(widths)), x.dtype)
        edges = [sum(widths[:index]) for index in range(len(widths) + 1)]
        for (output, _), low, high in zip(results, edges, edges[1:], strict=False):
            y[..., low:high] = output

        def backward(dy: Array) -> Array | None:
            total: Array | None = None
            for index, (output, step) in enumerate(results):
                part = self.space.get(f"dy{index}", output.shape, output.dtype)
                part[...] = dy[..., edges[index] : edges[index + 1]]
                gradient = step(part)
                if gradient is None or not self.needs_input_gradient:
                    continue
                if total is None:
                    total = self.space.get("dx", x.shape, x.dtype)
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

    def stored(self, shape: Shape) -> int:
        return 0

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        return x, lambda dy: dy


class Recompute(Composite):
    """Computes its body again in the backward pass instead of keeping its activations (Chen et al., 2016).

    All such layers of a model share the memory of their bodies' activations: what is kept is one output for each, and one
    set of activations for those whose bodies have the same structure.
    """

    kind = "recompute"

    def __init__(self, body: Layer | Sequence[Layer]) -> None:
        super().__init__([body if isinstance(body, Layer) else Sequential(body)], ["body"])

    def output_shape(self, shape: Shape) -> Shape:
        return self._named("body", self.parts[0][1], shape)

    def stored(self, shape: Shape) -> int:
        return math.prod(self.output_shape(shape))

    def bind(self, ops: Ops, parameters: FlatParameters, runtime: Runtime) -> None:
        super().bind(ops, parameters, runtime)
        for layer in self.parts[0][1].walk():
            layer.memory = f"recomputed {layer.kind}{layer.name[len(self.name) :]}"

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        body = self.parts[0][1]
        output, _ = body.forward(x, train=train)
        y = self.space.get("y", output.shape, output.dtype)
        y[...] = output

        def backward(dy: Array) -> Array | None:
            kept = self.runtime.activations.space("recomputed").get(
                "dy", dy.shape, dy.dtype
            )  # dy may lie in the memory that the body is about to use
            kept[...] = dy
            self.runtime.recomputing = True
            try:
                _, step = body.forward(x, train=train)
            finally:
                self.runtime.recomputing = False
            return step(kept)

        return y, backward
