"""Activation checkpointing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mpidl.backend import Array, Ops
from mpidl.nn.layer import Backward, Layer, Runtime, Shape
from mpidl.nn.layers.composite import Composite, as_layer
from mpidl.nn.parameters import FlatParameters


class Recompute(Composite):
    """Activation checkpointing (Chen et al., 2016).

    Recomputes the activations of the body in the backward pass instead of keeping them. All such
    layers of a model share the memory of these activations: each keeps its output only, and bodies
    of the same structure use one set of activations.

    Args:
        body: One or more layers.
    """

    kind = "recompute"

    def __init__(self, body: Layer | Sequence[Layer]) -> None:
        super().__init__([as_layer(body)], ["body"])

    def output_shape(self, shape: Shape) -> Shape:
        return self._part_shape("body", self.parts[0][1], shape)

    def activation_elements(self, shape: Shape) -> int:
        return math.prod(self.output_shape(shape))

    def bind(self, ops: Ops, parameters: FlatParameters, runtime: Runtime) -> None:
        super().bind(ops, parameters, runtime)
        for layer in self.parts[0][1].walk():
            layer.workspace_name = f"recomputed {layer.kind}{layer.name[len(self.name) :]}"

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        body = self.parts[0][1]
        output, _ = body.forward(x, train=train)
        y = self.workspace.get("y", output.shape, output.dtype)
        y[...] = output

        def backward(dy: Array) -> Array | None:
            # dy may be in memory that the body is about to overwrite
            shared = self.runtime.activations.workspace("recomputed")
            kept = shared.get("dy", dy.shape, dy.dtype)
            kept[...] = dy
            self.runtime.recomputing = True
            try:
                _, step = body.forward(x, train=train)
            finally:
                self.runtime.recomputing = False
            return step(kept)

        return y, backward
