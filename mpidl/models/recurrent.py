"""Recurrent networks."""

from __future__ import annotations

from mpidl.nn import LSTM, Dense, Dropout, Embedding, Layer


def lstm(
    input_shape: tuple[int, ...], classes: int, *, units: int = 512, depth: int = 2, embedding: int = 256, sequences: bool
    | None = None,
    dropout: float = 0.0,
) -> list[Layer]:  # fmt: skip
    """LSTMs one above the other. Tokens (t,) are embedded and give logits for the token after each; series (t, c) give one
    label.

    sequences: an output for every step; by default for tokens only.
    """
    tokens = len(input_shape) == 1
    every = tokens if sequences is None else sequences
    layers: list[Layer] = [Embedding(classes, embedding)] if tokens else []
    for index in range(depth):
        layers.append(LSTM(units, sequences=every or index < depth - 1))
        layers += [Dropout(dropout)] if dropout else []
    return [*layers, Dense(classes)]
