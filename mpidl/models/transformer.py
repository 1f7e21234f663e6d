"""Transformers: a decoder for text and an encoder for images."""

from __future__ import annotations

from mpidl.errors import ShapeError
from mpidl.models.base import model
from mpidl.nn import (
    Conv2D,
    Dense,
    Dropout,
    Embedding,
    GlobalAvgPool,
    Layer,
    LayerNorm,
    PositionalEmbedding,
    Recompute,
    Reshape,
    Residual,
    SelfAttention,
)
from mpidl.options import Positive, Share


def _blocks(
    width: int, depth: int, heads: int, *, causal: bool, gelu: str, dropout: float, recompute: bool
) -> list[Layer]:
    """Pre-norm blocks (Xiong et al., 2020): attention, then a feed-forward network, each residual.

    The feed-forward network is four times wider.
    """
    layers: list[Layer] = []

    def drop() -> list[Layer]:
        return [Dropout(dropout)] if dropout else []

    for _ in range(depth):
        attention = [LayerNorm(), SelfAttention(heads, causal=causal), *drop()]
        feed_forward = [LayerNorm(), Dense(4 * width, activation=gelu), Dense(width), *drop()]
        pair: list[Layer] = [Residual(attention), Residual(feed_forward)]
        layers += [Recompute(pair)] if recompute else pair
    return layers


@model(samples="any", tiny={"width": 64, "depth": 2, "heads": 4})
def gpt(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    width: Positive = 768,
    depth: Positive = 12,
    heads: Positive = 12,
    dropout: Share = 0.0,
    recompute: bool = False,
) -> list[Layer]:
    """GPT-2 (Radford et al., 2019): tokens (t,) to logits (t, outputs) of the next token.

    Args:
        width: Size of the token embeddings.
        depth: Number of blocks.
        heads: Number of attention heads; must divide the width.
        dropout: Dropout rate of attention and feed-forward outputs.
        recompute: Recompute activations in the backward pass to save memory.
    """
    blocks = _blocks(
        width, depth, heads, causal=True, gelu="gelu_tanh", dropout=dropout, recompute=recompute
    )
    return [
        Embedding(outputs, width, positions=True),
        *blocks,
        LayerNorm(),
        Dense(outputs, bias=False, init="small_normal"),
    ]


@model(samples="image", tiny={"patch": 4, "width": 32, "depth": 2, "heads": 2})
def vit(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    patch: Positive = 16,
    width: Positive = 384,
    depth: Positive = 12,
    heads: Positive = 6,
    dropout: Share = 0.0,
    recompute: bool = False,
) -> list[Layer]:
    """Vision transformer (Dosovitskiy et al., 2021) with mean pooling, for images (h, w, c).

    Args:
        patch: Height and width of the patches.
        width: Size of the patch embeddings.
        depth: Number of blocks.
        heads: Number of attention heads; must divide the width.
        dropout: Dropout rate of attention and feed-forward outputs.
        recompute: Recompute activations in the backward pass to save memory.

    Raises:
        ShapeError: The images are smaller than a patch.
    """
    rows, columns = input_shape[0] // patch, input_shape[1] // patch
    if not rows or not columns:
        raise ShapeError(
            f"images {input_shape} are smaller than a patch of {patch} x {patch}",
            where="model vit",
            remedy="choose a smaller patch",
        )
    blocks = _blocks(
        width, depth, heads, causal=False, gelu="gelu", dropout=dropout, recompute=recompute
    )
    tokens: list[Layer] = [
        Conv2D(width, patch, stride=patch, pad=0),
        Reshape(rows * columns, width),
        PositionalEmbedding(),
    ]
    return [*tokens, *blocks, LayerNorm(), GlobalAvgPool(), Dense(outputs)]
