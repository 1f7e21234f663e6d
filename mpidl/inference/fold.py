"""Layers that follow a convolution, in one pass with it.

Batch norms are folded into the convolutions before them, which is exact; max-pooling follows an
int8 convolution while its outputs are in the cache of the processor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from mpidl.backend import Array
from mpidl.errors import CheckpointError
from mpidl.inference.int8 import multiplies_int8
from mpidl.nn import BatchNorm, Conv1D, Conv2D, Conv3D, Layer, MaxPool2D, Model, Sequential
from mpidl.nn.layer import Backward, Shape

Convolution = Conv1D | Conv2D | Conv3D


class _JoinedConv(Layer):
    """A convolution and what follows it, in one pass; for inference only.

    Its output and its name are those of the last.

    Args:
        conv: Bound to a model, as the next two.
        norm: What was folded into it: its bias is left, and its ReLU. None: nothing was.
        pool: A max-pooling; the convolution is one of int8. None: there is none.
    """

    kind = "joined_conv"

    def __init__(self, conv: Convolution, norm: BatchNorm | None, pool: MaxPool2D | None) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.pool = pool
        self.name = (pool or norm or conv).name
        if norm is not None:
            conv.has_relu = norm.has_relu

    def output_shape(self, shape: Shape) -> Shape:
        shape = self.conv.output_shape(shape)
        return shape if self.pool is None else self.pool.output_shape(shape)

    def children(self) -> list[tuple[str, Layer]]:
        parts = {"conv": self.conv, "norm": self.norm, "pool": self.pool}
        return [(name, part) for name, part in parts.items() if part is not None]

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        conv = self.conv
        size = (x.shape[0], *self.output_shape(x.shape[1:]))
        y = conv.workspace.get("y", size, x.dtype)
        own = conv if conv.bias else None
        holder = own if self.norm is None else self.norm
        bias = None if holder is None else holder.value("bias")
        conv.convolve(x, y, bias, **({} if self.pool is None else {"pool": self.pool.kernel}))

        def backward(dy: Array) -> Array | None:
            raise CheckpointError(
                "a model for inference has no gradients",
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


def join(model: Model, *, norms: bool) -> None:
    """Replace convolutions and what one pass can do with them by one layer; for inference only.

    Args:
        model: Its layers are changed.
        norms: Whether batch norms were folded.
    """
    for layer in list(model.walk()):
        if isinstance(layer, Sequential):
            parts = _joined([part for _, part in layer.parts], norms=norms)
            layer.parts = [(part.name.removeprefix(f"{layer.name}."), part) for part in parts]
    model.layers = _joined(model.layers, norms=norms)


def _joined(layers: list[Layer], *, norms: bool) -> list[Layer]:
    folded = {id(conv): norm for conv, norm in _pairs(layers)} if norms else {}
    found: list[Layer] = []
    rest = deque(layers)
    while rest:
        layer = rest.popleft()
        if isinstance(layer, Convolution):
            norm, pool = folded.get(id(layer)), None
            if norm is not None:
                rest.popleft()
            after = rest[0] if rest else None
            if isinstance(after, MaxPool2D) and after.is_tiled and multiplies_int8(layer):
                rest.popleft()
                pool = after
            if norm is not None or pool is not None:
                layer = _JoinedConv(layer, norm, pool)
        found.append(layer)
    return found
