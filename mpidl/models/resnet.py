"""Residual networks (He et al., 2016)."""

from __future__ import annotations

from functools import partial

from mpidl.nn import BatchNorm, Conv2D, Dense, GlobalAveragePool, Layer, MaxPool2D, Residual

BLOCKS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
}
SMALL = 64  # pixels: up to here the stem keeps the resolution


def _conv(channels: int, kernel: int, stride: int = 1) -> Conv2D:
    return Conv2D(channels, kernel, stride=stride, pad=kernel // 2, bias=False)


def resnet(
    input_shape: tuple[int, ...],
    classes: int,
    *,
    depth: int = 18,
    width: int = 64,
    stem: str = "auto",
    synchronized: bool = True,
) -> list[Layer]:
    """Stem, four stages of residual blocks (bottlenecks from depth 50 on), average, dense; as torchvision's, channels last.

    width: channels of the first stage. stem: "imagenet" (7x7 stride 2, then pooling), "small" (3x3), or by the image's size.
    synchronized: batch norm over the batches of all ranks.
    """
    if depth not in BLOCKS or stem not in ("auto", "imagenet", "small"):
        raise ValueError(
            f"depth {depth}, stem {stem!r}: known are depths {sorted(BLOCKS)}, stems auto, imagenet, small"
        )
    small = stem == "small" or (stem == "auto" and max(input_shape[:2]) <= SMALL)

    def norm(*, relu: bool = True) -> BatchNorm:
        return BatchNorm(relu=relu, synchronized=synchronized)

    layers: list[Layer] = (
        [_conv(width, 3), norm()]
        if small
        else [_conv(width, 7, 2), norm(), MaxPool2D(3, stride=2, pad=1)]
    )
    bottleneck, channels = depth >= 50, width
    for stage, blocks in enumerate(BLOCKS[depth]):
        inner = width << stage
        outer = 4 * inner if bottleneck else inner
        for block in range(blocks):
            stride = 2 if stage and block == 0 else 1
            if bottleneck:
                body: list[Layer] = [
                    _conv(inner, 1),
                    norm(),
                    _conv(inner, 3, stride),
                    norm(),
                    _conv(outer, 1),
                    norm(relu=False),
                ]
            else:
                body = [_conv(inner, 3, stride), norm(), _conv(outer, 3), norm(relu=False)]
            changed = stride > 1 or channels != outer
            layers.append(
                Residual(
                    body,
                    [_conv(outer, 1, stride), norm(relu=False)] if changed else None,
                    relu=True,
                )
            )
            channels = outer
    return [*layers, GlobalAveragePool(), Dense(classes)]


resnet18 = partial(resnet, depth=18)
resnet50 = partial(resnet, depth=50)
