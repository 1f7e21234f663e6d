"""Residual networks (He et al., 2016)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from mpidl.models.base import model
from mpidl.nn import BatchNorm, Conv2D, Dense, GlobalAvgPool, Layer, MaxPool2D, Residual
from mpidl.options import Positive

BLOCKS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
}
BOTTLENECKS_FROM = 50  # depth
SMALL = 64  # pixels: up to this size the stem keeps the resolution
Norm = Callable[..., BatchNorm]


def _conv(channels: int, kernel: int, stride: int = 1) -> Conv2D:
    return Conv2D(channels, kernel, stride=stride, pad=kernel // 2, bias=False)


def _body(inner: int, outer: int, stride: int, norm: Norm, *, bottleneck: bool) -> list[Layer]:
    if bottleneck:
        middle = [_conv(inner, 1), norm(), _conv(inner, 3, stride), norm()]
        return [*middle, _conv(outer, 1), norm(relu=False)]
    return [_conv(inner, 3, stride), norm(), _conv(outer, 3), norm(relu=False)]


def _stage(
    inner: int, blocks: int, stride: int, channels: int, norm: Norm, *, bottleneck: bool
) -> list[Layer]:
    """Residual blocks of one resolution; at most the first has a projection shortcut.

    Args:
        inner: Channels of the 3x3 convolutions.
        blocks: Number of blocks.
        stride: Stride of the first block.
        channels: Channels of the input.
        norm: Creates a normalization layer.
        bottleneck: Use three convolutions per block instead of two.
    """
    outer = 4 * inner if bottleneck else inner
    layers: list[Layer] = []
    for block in range(blocks):
        step = stride if block == 0 else 1
        changed = step > 1 or channels != outer
        shortcut = [_conv(outer, 1, step), norm(relu=False)] if changed else None
        body = _body(inner, outer, step, norm, bottleneck=bottleneck)
        layers.append(Residual(body, shortcut, relu=True))
        channels = outer
    return layers


@model(samples="image", tiny={"depth": 10, "width": 8}, real={"depth": 50})
def resnet(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    depth: Literal[10, 18, 34, 50, 101] = 18,
    width: Positive = 64,
    stem: Literal["auto", "imagenet", "small"] = "auto",
    synchronized: bool = True,
) -> list[Layer]:
    """Residual network as in torchvision, with channels last.

    Args:
        depth: Number of layers with weights; from 50 on the blocks are bottlenecks.
        width: Channels of the first stage.
        stem: "imagenet" (7x7 with stride 2 and pooling), "small" (3x3), or "auto" by image size.
        synchronized: Synchronize batch norm over the ranks.
    """
    norm = partial(BatchNorm, relu=True, synchronized=synchronized)
    if stem == "small" or (stem == "auto" and max(input_shape[:2]) <= SMALL):
        layers: list[Layer] = [_conv(width, 3), norm()]
    else:
        layers = [_conv(width, 7, 2), norm(), MaxPool2D(3, stride=2, pad=1)]
    bottleneck = depth >= BOTTLENECKS_FROM
    channels = width
    for stage, blocks in enumerate(BLOCKS[depth]):
        inner = width << stage
        stride = 2 if stage else 1
        layers += _stage(inner, blocks, stride, channels, norm, bottleneck=bottleneck)
        channels = 4 * inner if bottleneck else inner
    return [*layers, GlobalAvgPool(), Dense(outputs)]


resnet18 = model(samples="image", tiny={"width": 8})(partial(resnet, depth=18))
resnet50 = model(samples="image", tiny={"width": 8})(partial(resnet, depth=50))
