"""The pass of a language model over tokens of many sequences, with a cache of keys and values.

Tokens are rows, each with its place in its own sequence. A pass always has `ROWS` of them, those
that are not needed are empty: products of one shape give a row the same bits whatever stands in the
others, so that a text does not depend on what is generated beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mpidl.backend import Array
from mpidl.backend.contract.sequence import CacheView
from mpidl.errors import ConfigError
from mpidl.nn import (
    Activation,
    Dense,
    Dropout,
    Embedding,
    Layer,
    LayerNorm,
    Model,
    Recompute,
    ReLU,
    Residual,
    RMSNorm,
    SelfAttention,
    Sequential,
)

ROWS = 16
CacheKind = Literal["float", "int8"]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Tokens of a pass.

    Attributes:
        tokens: (ROWS,) int64.
        positions: (ROWS,) int64, in their sequences.
        slots: (ROWS,) int64, where keys and values go: block * tokens of a block + place in it.
        owner: (ROWS,) int64, row of the table of blocks.
        visible: (ROWS,) int64, tokens that each sees, itself included; 0: the row is empty.
        table: (sequences, columns) int64, the blocks of the sequences.
    """

    tokens: Array
    positions: Array
    slots: Array
    owner: Array
    visible: Array
    table: Array


class Cache:
    """Keys and values of all layers, each in one array of blocks.

    Args:
        model: A language model.
        blocks: Number of blocks; one more holds what empty rows write.
        block: Tokens of a block.
        kind: "int8": each head of a token is rounded to int8, with a step of its own; a quarter of
            the memory.

    Attributes:
        layers: Of each layer of attention by its name; the table is that of a pass.
    """

    def __init__(self, model: Model, blocks: int, block: int, kind: CacheKind = "float") -> None:
        self.block = block
        self.layers: dict[str, CacheView] = {}
        xp, wide = model.ops.xp, kind == "float"
        dtype = model.parameters.compute_dtype if wide else np.int8
        for layer in model.walk():
            if isinstance(layer, SelfAttention):
                width = layer.value("out.bias").shape[0]
                shape = (blocks + 1, block, layer.heads, width // layer.heads)
                keys, values = (xp.zeros(shape, dtype) for _ in range(2))
                steps = [None if wide else xp.zeros(shape[:-1], np.float32) for _ in range(2)]
                table = xp.zeros((0, 0), np.int64)
                self.layers[layer.name] = CacheView(keys, values, table, *steps)

    @property
    def nbytes(self) -> int:
        """Memory of all keys and values."""
        arrays = [array for view in self.layers.values() for array in view if array is not None]
        return sum(int(array.nbytes) for array in arrays)


class Decoder:
    """Passes of a model over rows of tokens.

    Args:
        model: A causal language model: tokens (t,) to logits (t, vocabulary).
        cache: Keys and values.

    Raises:
        ConfigError: A layer is not made for tokens one after another.
    """

    def __init__(self, model: Model, cache: Cache) -> None:
        self.model = model
        self.ops = model.ops
        self.cache = cache
        self.length = int(model.input_shape[0])
        for layer in model.walk():
            if type(layer) not in STEPS:
                raise ConfigError(
                    f"layer {layer.name} ({layer.kind}) does not generate tokens one after another",
                    where="model",
                    remedy="generate with a gpt model",
                )
            if isinstance(layer, SelfAttention) and not layer.causal:
                raise ConfigError(
                    f"layer {layer.name} sees later tokens", where="model", remedy="use a gpt model"
                )

    def logits(self, rows: Rows) -> NDArray[Any]:
        """(ROWS, vocabulary): the outputs for each row; keys and values go into the cache."""
        self.model.parameters.refresh()
        x: Array = rows.tokens
        for layer in self.model.layers:
            x = self.step(layer, x, rows)
        return np.array(self.ops.to_host(x))

    def step(self, layer: Layer, x: Array, rows: Rows) -> Array:
        """The output of a layer, (ROWS, width)."""
        y: Array = STEPS[type(layer)](self, layer, x, rows)
        return y


def _embed(decoder: Decoder, layer: Any, x: Array, rows: Rows) -> Array:
    y: Array = layer.workspace.get("rows", (len(x), layer.width), layer.parameters.compute_dtype)
    decoder.ops.embedding_forward(layer.value("weight"), x, y)
    if layer.positions:
        table = layer.value("positions")
        at = layer.workspace.get("at", y.shape, y.dtype)
        decoder.ops.embedding_forward(table.reshape(-1, layer.width), rows.positions, at)
        decoder.ops.xp.add(y, at, out=y)
    return y


def _attend(decoder: Decoder, layer: Any, x: Array, rows: Rows) -> Array:
    width, heads = x.shape[1], layer.heads
    dim = width // heads
    parts = _project(layer, "qkv", x).reshape(len(x), 3, heads, dim)
    cache = decoder.cache.layers[layer.name]._replace(table=rows.table)
    if cache.key_steps is None:
        cache.keys.reshape(-1, heads, dim)[rows.slots] = parts[:, 1]
        cache.values.reshape(-1, heads, dim)[rows.slots] = parts[:, 2]
    else:
        decoder.ops.cache_int8(parts, rows.slots, cache)
    q = decoder.ops.xp.ascontiguousarray(parts[:, 0])
    mixed = layer.workspace.get("rows", q.shape, q.dtype)
    decoder.ops.cached_attention(q, cache, mixed, rows.owner, rows.visible, dim**-0.5)
    return _project(layer, "out", mixed.reshape(x.shape))


def _project(layer: Any, name: str, x: Array) -> Array:
    weight = layer.value(f"{name}.weight")
    y: Array = layer.workspace.get(f"rows.{name}", (len(x), weight.shape[1]), x.dtype)
    layer.ops.dense_forward(x, weight, layer.value(f"{name}.bias"), y, relu=False)
    return y


def _alone(decoder: Decoder, layer: Layer, x: Array, rows: Rows) -> Array:
    """A layer that sees each token on its own."""
    y, _ = layer.forward(x, train=False)
    return y


def _through(decoder: Decoder, layer: Layer, x: Array, rows: Rows) -> Array:
    for _, part in layer.children():
        x = decoder.step(part, x, rows)
    return x


def _add(decoder: Decoder, layer: Layer, x: Array, rows: Rows) -> Array:
    kept = layer.workspace.get("kept", x.shape, x.dtype)
    kept[...] = x  # the layers within may use the memory again
    parts = layer.children()
    y = decoder.step(parts[0][1], x, rows)
    other = kept if len(parts) == 1 else decoder.step(parts[1][1], kept, rows)
    out = layer.workspace.get("sum", y.shape, y.dtype)
    decoder.ops.xp.add(y, other, out=out)
    if layer.has_relu:
        decoder.ops.xp.maximum(out, 0, out=out)
    return out


Step = Callable[[Decoder, Any, Array, Rows], Array]
# how each kind of layer passes rows of tokens
STEPS: dict[type[Layer], Step] = {
    Activation: _alone,
    Dense: _alone,
    Dropout: _alone,
    Embedding: _embed,
    LayerNorm: _alone,
    RMSNorm: _alone,
    ReLU: _alone,
    Recompute: _through,
    Residual: _add,
    SelfAttention: _attend,
    Sequential: _through,
}


def empty_rows(columns: int, trash: int) -> dict[str, Indices]:
    """Rows without tokens, on the host.

    Args:
        columns: Of the table.
        trash: The slot that empty rows write to.
    """
    found = {name: np.zeros(ROWS, np.int64) for name in ("tokens", "positions", "owner", "visible")}
    return found | {
        "slots": np.full(ROWS, trash, np.int64),
        "table": np.zeros((ROWS, columns), np.int64),
    }


def check_tokens(tokens: Sequence[int], vocabulary: int) -> None:
    """Refuse tokens that the model does not know.

    Raises:
        ConfigError: One is.
    """
    bad = [token for token in tokens if not 0 <= token < vocabulary]
    if bad:
        raise ConfigError(
            f"token {bad[0]} is none of the {vocabulary} of the model",
            where="prompt",
            remedy="use the tokenizer that the model was trained with",
        )
