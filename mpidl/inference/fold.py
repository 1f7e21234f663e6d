"""Folding of batch norms into the convolutions before them: exact, and one pass less each."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from mpidl.backend import Array
from mpidl.errors import CheckpointError
from mpidl.nn import BatchNorm, Conv1D, Conv2D, Conv3D, Layer, Model, Sequential
from mpidl.nn.layer import Backward, Shape

Convolution = Conv1D | Conv2D | Conv3D


class _FoldedConv(Layer):
    """A convolution that adds the bias of the batch norm behind it, and applies its ReLU.

    Args:
        conv: Bound to a model, as the next.
        norm: What was folded into it: only its bias is left.
    """

    kind = "folded_conv"

    def __init__(self, conv: Convolution, norm: BatchNorm) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.name = norm.name  # its output is that of the batch norm
        conv.has_relu = norm.has_relu

    def output_shape(self, shape: Shape) -> Shape:
        return self.conv.output_shape(shape)

    def children(self) -> list[tuple[str, Layer]]:
        return [("conv", self.conv), ("norm", self.norm)]

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        conv = self.conv
        size = (x.shape[0], *conv.output_shape(x.shape[1:]))
        y = conv.workspace.get("y", size, x.dtype)
        conv.convolve(x, y, self.norm.value("bias"))

        def backward(dy: Array) -> Array | None:
            raise CheckpointError(
                "a folded model has no gradients",
                where=f"layer {self.name}",
                remedy="use a checkpoint of the run that it was made from",
            )

        return y, backward


def _pairs(layers: list[Layer]) -> Iterator[tuple[Convolution, BatchNorm]]:
    for conv, norm in pairwise(layers):
        if isinstance(conv, Convolution) and isinstance(norm, BatchNorm) and not conv.has_relu:
            yield conv, norm


def _sequences(model: Model) -> Iterator[list[Layer]]:
    """All chains of layers, in which each takes the output of the one before it."""
    yield model.layers
    for layer in model.walk():
        if isinstance(layer, Sequential):
            yield [part for _, part in layer.parts]


def fold(model: Model) -> int:
    """Fold batch norms into the convolutions before them.

    The convolution gets the scale, the batch norm keeps a bias and otherwise does nothing: the
    parameters still are those of the model.

    Args:
        model: Its parameters are changed.

    Returns:
        How many were folded.
    """
    ops, count = model.ops, 0
    for layers in _sequences(model):
        for conv, norm in _pairs(layers):
            host = {
                name: np.asarray(ops.to_host(norm.value(name))).astype(np.float64)
                for name in ("weight", "bias", "running_mean", "running_var")
            }
            scale = host["weight"] / np.sqrt(host["running_var"] + norm.eps)
            shift = host["bias"] - host["running_mean"] * scale
            parameters = model.parameters
            if conv.bias:
                own = parameters.value(f"{conv.name}.bias")
                shift = shift + np.asarray(ops.to_host(own)).astype(np.float64) * scale
                own[...] = 0
            weight = parameters.value(f"{conv.name}.weight")
            scaled = np.asarray(ops.to_host(weight)).astype(np.float64) * scale
            weight[...] = ops.to_device(scaled.astype(weight.dtype))
            neutral: dict[str, Any] = {
                "weight": 1.0,
                "bias": shift,
                "running_mean": 0.0,
                "running_var": 1.0 - norm.eps,
            }
            for name, value in neutral.items():
                held = parameters.value(f"{norm.name}.{name}")
                held[...] = ops.to_device(np.broadcast_to(value, held.shape).astype(held.dtype))
            count += 1
    return count


def drop_folded(model: Model) -> None:
    """Replace convolutions and the batch norms folded into them by one layer; for inference only.

    Args:
        model: Its layers are changed; its parameters are folded already.
    """
    for layer in list(model.walk()):
        if isinstance(layer, Sequential):
            parts = _joined([part for _, part in layer.parts])
            layer.parts = [(part.name.removeprefix(f"{layer.name}."), part) for part in parts]
    model.layers = _joined(model.layers)


def _joined(layers: list[Layer]) -> list[Layer]:
    pairs = {id(conv): norm for conv, norm in _pairs(layers)}
    gone = {id(norm) for norm in pairs.values()}
    return [
        _FoldedConv(layer, pairs[id(layer)])  # type: ignore[arg-type]
        if id(layer) in pairs
        else layer
        for layer in layers
        if id(layer) not in gone
    ]
