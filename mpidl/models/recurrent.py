"""Recurrent networks."""

from __future__ import annotations

from mpidl.models.base import model
from mpidl.nn import LSTM, Dense, Dropout, Embedding, Layer
from mpidl.options import Positive, Share


@model(samples="series", tiny={"units": 64, "depth": 1, "embedding": 32})
def lstm(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    units: Positive = 512,
    depth: Positive = 2,
    embedding: Positive = 256,
    sequences: bool | None = None,
    dropout: Share = 0.0,
) -> list[Layer]:
    """Stacked LSTMs for tokens (t,) or series (t, c).

    Tokens are embedded; the outputs are logits of the next token.

    Args:
        units: Size of the state.
        depth: Number of LSTM layers.
        embedding: Size of the token embeddings.
        sequences: Return an output for every step; by default for tokens, but not for series.
        dropout: Dropout rate of the output of each LSTM layer.
    """
    tokens = len(input_shape) == 1
    every = tokens if sequences is None else sequences
    layers: list[Layer] = [Embedding(outputs, embedding)] if tokens else []
    for index in range(depth):
        layers.append(LSTM(units, sequences=every or index < depth - 1))
        layers += [Dropout(dropout)] if dropout else []
    return [*layers, Dense(outputs)]
