"""Attention, embeddings and recurrent layers as ONNX operations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpidl.inference.export.graph import Graph, Value, weights
from mpidl.nn import GRU, LSTM, Embedding, PositionalEmbedding, SelfAttention

# Order of the gates in ONNX, as numbers of ours
LSTM_GATES = (0, 3, 1, 2)  # input, output, forget, cell; ours: input, forget, cell, output
GRU_GATES = (1, 0, 2)  # update, reset, new; ours: reset, update, new


def convert_embedding(graph: Graph, layer: Embedding, x: Value) -> Value:
    """Rows of a table, and the embedding of their positions."""
    table = graph.constant(weights(layer, "weight"))
    y = Value(graph.node("Gather", [table, x.name], axis=0), layer.output_shape(x.shape))
    if layer.positions:
        y = graph.apply("Add", y, graph.constant(weights(layer, "positions")))
    return y


def convert_positions(graph: Graph, layer: PositionalEmbedding, x: Value) -> Value:
    """The sum of samples and the embedding of their positions."""
    return graph.apply("Add", x, graph.constant(weights(layer, "weight")))


def convert_attention(graph: Graph, layer: SelfAttention, x: Value) -> Value:
    """Attention by matrix products and a softmax, which runtimes fuse."""
    tokens, width = x.shape
    dim = width // layer.heads

    def project(name: str, value: str) -> str:
        weight, bias = (graph.constant(weights(layer, f"{name}.{p}")) for p in ("weight", "bias"))
        return graph.node("Add", [graph.node("MatMul", [value, weight]), bias])

    packed = graph.reshape(project("qkv", x.name), -1, tokens, 3, layer.heads, dim)
    parts = graph.nodes("Split", [packed], 3, axis=2, num_outputs=3)
    q, k, v = (graph.node("Squeeze", [part, graph.integers(2)]) for part in parts)
    q = graph.node("Mul", [q, graph.constant(np.array(dim**-0.5))])
    # (n, heads, t, dim) and (n, heads, dim, t)
    scores = graph.node("MatMul", [graph.transpose(q, 0, 2, 1, 3), graph.transpose(k, 0, 2, 3, 1)])
    if layer.causal:
        mask = np.triu(np.full((tokens, tokens), -np.inf, np.float32), 1)
        scores = graph.node("Add", [scores, graph.constant(mask)])
    shares = graph.node("Softmax", [scores], axis=-1)
    mixed = graph.node("MatMul", [shares, graph.transpose(v, 0, 2, 1, 3)])
    mixed = graph.reshape(graph.transpose(mixed, 0, 2, 1, 3), -1, tokens, width)
    return Value(project("out", mixed), x.shape)


def convert_lstm(graph: Graph, layer: LSTM, x: Value) -> Value:
    """The operator LSTM, from states of zero."""
    return _recurrent(graph, layer, x, LSTM_GATES)


def convert_gru(graph: Graph, layer: GRU, x: Value) -> Value:
    """The operator GRU, which applies the reset gate after the recurrent product as we do."""
    return _recurrent(graph, layer, x, GRU_GATES, linear_before_reset=1)


def _recurrent(
    graph: Graph, layer: LSTM | GRU, x: Value, order: tuple[int, ...], **attributes: int
) -> Value:
    """A recurrent operator; it takes inputs (t, n, c) and gives states (t, 1, n, units)."""

    def gates(name: str) -> NDArray[np.float32]:
        """(gates * units, ...) in the order of ONNX."""
        found = np.split(weights(layer, name), len(order), axis=-1)
        joined: NDArray[np.float32] = np.concatenate([found[i] for i in order], axis=-1).T
        return joined

    biases = np.concatenate([gates("x.bias"), gates("h.bias")])
    constants = (gates("x.weight"), gates("h.weight"), biases)
    inputs = [graph.transpose(x.name, 1, 0, 2), *(graph.constant(one[None]) for one in constants)]
    operator = type(layer).__name__
    states, last = graph.nodes(operator, inputs, 2, hidden_size=layer.units, **attributes)
    shape = layer.output_shape(x.shape)
    if not layer.sequences:
        return Value(graph.node("Squeeze", [last, graph.integers(0)]), shape)
    return Value(
        graph.transpose(graph.node("Squeeze", [states, graph.integers(1)]), 1, 0, 2), shape
    )
