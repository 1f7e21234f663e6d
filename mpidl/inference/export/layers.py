"""Layers as ONNX operations: one converter for each class of layers.

Tensors between layers have the axes of mpidl, channels last; operators that want channels first
stand between two transpositions, which runtimes cancel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from mpidl.errors import ConfigError
from mpidl.inference.export.graph import Graph, Value, weights
from mpidl.inference.export.sequence import (
    convert_attention,
    convert_embedding,
    convert_gru,
    convert_lstm,
    convert_positions,
)
from mpidl.inference.export.spectral import convert_spectral
from mpidl.nn import (
    GRU,
    LSTM,
    Activation,
    AvgPool2D,
    BatchNorm,
    Concat,
    Conv1D,
    Conv2D,
    Conv3D,
    ConvTranspose2D,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    GlobalAvgPool,
    GroupNorm,
    Identity,
    Layer,
    LayerNorm,
    MaxPool2D,
    PositionalEmbedding,
    Recompute,
    ReLU,
    Reshape,
    Residual,
    RMSNorm,
    SelfAttention,
    Sequential,
    Softmax,
    SpectralConv,
)

# Adds the operations of a layer to a graph: its output for an input.
Converter = Callable[[Graph, Any, Value], Value]


def convert(graph: Graph, layer: Layer, x: Value) -> Value:
    """Add the operations of a layer.

    Args:
        graph: To add to.
        layer: Of a model; its ReLU is added here, where it has one.
        x: Its input.

    Returns:
        Its output.

    Raises:
        ConfigError: There is no converter for its class.
    """
    converter = CONVERTERS.get(type(layer))
    if converter is None:
        name = type(layer).__name__
        raise ConfigError(
            f"layers of the class {name} cannot be exported to ONNX",
            where=f"layer {layer.name}",
            remedy=f"add a converter for it: mpidl.inference.export.layers.CONVERTERS[{name}] = "
            "function; or export the parameters to a file .safetensors",
        )
    outer, graph.scope = graph.scope, layer.name
    y = converter(graph, layer, x)
    if layer.has_relu:
        y = graph.apply("Relu", y)
    graph.scope = outer
    return y


def activate(graph: Graph, x: Value, name: str) -> Value:
    """An activation function."""
    if name == "silu":
        return graph.apply("Mul", x, graph.apply("Sigmoid", x).name)
    operator, attributes = ACTIVATIONS[name]
    return graph.apply(operator, x, **attributes)


ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}),
    "gelu": ("Gelu", {"approximate": "none"}),
    "gelu_tanh": ("Gelu", {"approximate": "tanh"}),
    "tanh": ("Tanh", {}),
    "sigmoid": ("Sigmoid", {}),
}


def _channels_first(graph: Graph, x: Value) -> str:
    last = len(x.shape)
    return graph.transpose(x.name, 0, last, *range(1, last))


def _channels_last(graph: Graph, name: str, shape: tuple[int, ...]) -> Value:
    """A tensor (n, c, *positions) as samples of shape (*positions, c)."""
    return Value(graph.transpose(name, 0, *range(2, len(shape) + 1), 1), shape)


def _same(graph: Graph, layer: Layer, x: Value) -> Value:
    return x


def _activation(graph: Graph, layer: Activation, x: Value) -> Value:
    return activate(graph, x, layer.function)


def _softmax(graph: Graph, layer: Softmax, x: Value) -> Value:
    return graph.apply("LogSoftmax" if layer.log else "Softmax", x, axis=-1)


def _dense(graph: Graph, layer: Dense, x: Value) -> Value:
    name = graph.node("MatMul", [x.name, graph.constant(weights(layer, "weight"))])
    y = Value(name, layer.output_shape(x.shape))
    if layer.bias:
        y = graph.apply("Add", y, graph.constant(weights(layer, "bias")))
    return activate(graph, y, layer.activation) if layer.activation else y


def _conv(graph: Graph, layer: Conv1D | Conv2D | Conv3D, x: Value) -> Value:
    weight = np.moveaxis(weights(layer, "weight"), (-1, -2), (0, 1))
    inputs = [_channels_first(graph, x), graph.constant(weight)]
    if layer.bias:
        inputs.append(graph.constant(weights(layer, "bias")))
    name = graph.node(
        "Conv",
        inputs,
        kernel_shape=layer.kernel_size,
        strides=layer.strides,
        pads=(*layer.pads, *layer.pads),
        dilations=layer.dilation,
        group=layer.groups,
    )
    return _channels_last(graph, name, layer.output_shape(x.shape))


def _conv_transpose(graph: Graph, layer: ConvTranspose2D, x: Value) -> Value:
    weight = graph.constant(weights(layer, "weight").transpose(3, 2, 0, 1))
    name = graph.node(
        "ConvTranspose",
        [_channels_first(graph, x), weight, graph.constant(weights(layer, "bias"))],
        kernel_shape=(layer.kernel,) * 2,
        strides=(layer.stride,) * 2,
        pads=(layer.pad,) * 4,
    )
    return _channels_last(graph, name, layer.output_shape(x.shape))


def _pool(graph: Graph, layer: MaxPool2D | AvgPool2D, x: Value) -> Value:
    average = {"count_include_pad": 0} if isinstance(layer, AvgPool2D) else {}
    name = graph.node(
        "AveragePool" if average else "MaxPool",
        [_channels_first(graph, x)],
        kernel_shape=(layer.kernel,) * 2,
        strides=(layer.stride,) * 2,
        pads=(layer.pad,) * 4,
        **average,
    )
    return _channels_last(graph, name, layer.output_shape(x.shape))


def _global_average(graph: Graph, layer: GlobalAvgPool, x: Value) -> Value:
    axes = graph.integers(*range(1, len(x.shape)))
    return Value(graph.node("ReduceMean", [x.name, axes], keepdims=0), x.shape[-1:])


def _reshape(graph: Graph, layer: Reshape, x: Value) -> Value:
    return graph.as_samples(x, layer.output_shape(x.shape))


def _batch_norm(graph: Graph, layer: BatchNorm, x: Value) -> Value:
    parts = ("weight", "bias", "running_mean", "running_var")
    constants = [graph.constant(weights(layer, part)) for part in parts]
    first = _channels_first(graph, x)
    name = graph.node("BatchNormalization", [first, *constants], epsilon=layer.eps)
    return _channels_last(graph, name, x.shape)


def _layer_norm(graph: Graph, layer: LayerNorm, x: Value) -> Value:
    scale, bias = (graph.constant(weights(layer, part)) for part in ("weight", "bias"))
    return graph.apply("LayerNormalization", x, scale, bias, axis=-1, epsilon=layer.eps)


def _rms_norm(graph: Graph, layer: RMSNorm, x: Value) -> Value:
    scale = graph.constant(weights(layer, "weight"))
    return graph.apply("Mul", _by_root(graph, x, layer.eps, -1), scale)


def _by_root(graph: Graph, x: Value, eps: float, *axes: int) -> Value:
    """x / sqrt(mean of x^2 over some axes + eps)."""
    square = graph.apply("Mul", x, x.name)
    mean = graph.node("ReduceMean", [square.name, graph.integers(*axes)])
    root = graph.node("Sqrt", [graph.node("Add", [mean, graph.constant(np.array(eps))])])
    return graph.apply("Div", x, root)


def _group_norm(graph: Graph, layer: GroupNorm, x: Value) -> Value:
    channels = x.shape[-1]
    grouped = (math.prod(x.shape[:-1]), layer.groups, channels // layer.groups)
    wide = graph.as_samples(x, grouped)
    mean = graph.node("ReduceMean", [wide.name, graph.integers(1, 3)])
    wide = _by_root(graph, graph.apply("Sub", wide, mean), layer.eps, 1, 3)
    y = graph.as_samples(wide, x.shape)
    y = graph.apply("Mul", y, graph.constant(weights(layer, "weight")))
    return graph.apply("Add", y, graph.constant(weights(layer, "bias")))


def _sequence(graph: Graph, layer: Sequential | Recompute, x: Value) -> Value:
    for _, part in layer.children():
        x = convert(graph, part, x)
    return x


def _residual(graph: Graph, layer: Residual, x: Value) -> Value:
    parts = [convert(graph, part, x) for _, part in layer.children()]
    return graph.apply("Add", parts[0], parts[1].name if len(parts) > 1 else x.name)


def _concat(graph: Graph, layer: Concat, x: Value) -> Value:
    parts = [convert(graph, part, x).name for _, part in layer.children()]
    return Value(graph.node("Concat", parts, axis=-1), layer.output_shape(x.shape))


CONVERTERS: dict[type[Layer], Converter] = {
    Activation: _activation,
    AvgPool2D: _pool,
    BatchNorm: _batch_norm,
    Concat: _concat,
    Conv1D: _conv,
    Conv2D: _conv,
    Conv3D: _conv,
    ConvTranspose2D: _conv_transpose,
    Dense: _dense,
    Dropout: _same,  # drops nothing outside training
    Embedding: convert_embedding,
    Flatten: _reshape,
    GRU: convert_gru,
    GlobalAvgPool: _global_average,
    GroupNorm: _group_norm,
    Identity: _same,
    LSTM: convert_lstm,
    LayerNorm: _layer_norm,
    MaxPool2D: _pool,
    PositionalEmbedding: convert_positions,
    RMSNorm: _rms_norm,
    ReLU: _activation,
    Recompute: _sequence,
    Reshape: _reshape,
    Residual: _residual,
    SelfAttention: convert_attention,
    Sequential: _sequence,
    Softmax: _softmax,
    SpectralConv: convert_spectral,
}
