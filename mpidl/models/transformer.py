"""Transformers: a decoder for text and an encoder for images."""

from __future__ import annotations

from mpidl.nn import (
    Conv2D,
    Dense,
    Dropout,
    Embedding,
    GlobalAveragePool,
    Layer,
    LayerNorm,
    Positions,
    Recompute,
    Reshape,
    Residual,
    SelfAttention,
)


def _blocks(
    width: int, depth: int, heads: int, *, causal: bool, gelu: str, dropout: float, recompute: bool
) -> list[Layer]:
    """Pre-norm blocks (Xiong et al., 2020): attention, then a four times wider network, each added to its input."""
    layers: list[Layer] = []

    def drop() -> list[Layer]:
        return [Dropout(dropout)] if dropout else []

    for _ in range(depth):
        attend = [LayerNorm(), SelfAttention(heads, causal=causal), *drop()]
        think = [LayerNorm(), Dense(4 * width, activation=gelu), Dense(width), *drop()]
        pair: list[Layer] = [Residual(attend), Residual(think)]
        layers += [Recompute(pair)] if recompute else pair
    return layers


def gpt(
    input_shape: tuple[int, ...], classes: int, *, width: int = 768, depth: int = 12, heads: int = 12, dropout: float = 0.0,
    recompute: bool = False,
) -> list[Layer]:  # fmt: skip
    """Decoder (Radford et al., 2019): tokens (t,) to logits (t, classes) for the token after each. recompute: keep less
    memory."""
    blocks = _blocks(
        width, depth, heads, causal=True, gelu="gelu_tanh", dropout=dropout, recompute=recompute
    )
    return [
        Embedding(classes, width, positions=True),
        *blocks,
        LayerNorm(),
        Dense(classes, bias=False, init="small_normal"),
    ]


def vit(
    input_shape: tuple[int, ...], classes: int, *, patch: int = 16, width: int = 384, depth: int = 12, heads: int = 6,
    dropout: float = 0.0, recompute: bool = False,
) -> list[Layer]:  # fmt: skip
    """Vision transformer (Dosovitskiy et al., 2021) with mean pooling: patches of an image (h, w, c) are its tokens."""
    rows, columns = input_shape[0] // patch, input_shape[1] // patch
    if not rows or not columns:
        raise ValueError(f"patches of {patch} do not fit into images of {input_shape}")
    blocks = _blocks(
        width, depth, heads, causal=False, gelu="gelu", dropout=dropout, recompute=recompute
    )
    tokens: list[Layer] = [
        Conv2D(width, patch, stride=patch, pad=0),
        Reshape(rows * columns, width),
        Positions(),
    ]
    return [*tokens, *blocks, LayerNorm(), GlobalAveragePool(), Dense(classes)]
