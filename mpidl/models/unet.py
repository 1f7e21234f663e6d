"""U-Net."""

from __future__ import annotations

from mpidl.errors import ShapeError
from mpidl.models.base import model
from mpidl.nn import (
    Concat,
    Conv2D,
    ConvTranspose2D,
    GroupNorm,
    Identity,
    Layer,
    MaxPool2D,
    Sequential,
)
from mpidl.options import Positive


def _double_conv(channels: int, groups: int) -> list[Layer]:
    pair = (Conv2D(channels, 3, bias=False), GroupNorm(groups, relu=True))
    return [*pair, Conv2D(channels, 3, bias=False), GroupNorm(groups, relu=True)]


@model(samples="image", tiny={"channels": (8, 16), "groups": 4})
def unet(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    channels: tuple[Positive, ...] = (64, 128, 256, 512),
    groups: Positive = 8,
) -> list[Layer]:
    """U-Net (Ronneberger et al., 2015) with group norm: (h, w, c) to (h, w, outputs).

    For regression of fields, or for segmentation with a cross-entropy at every pixel.

    Args:
        channels: Channels of the levels, each of half the resolution of the one before: height and
            width must be divisible by 2^(levels - 1).
        groups: Groups of the group norms; must divide all channels.

    Raises:
        ShapeError: Height or width is not divisible.
    """
    step = 1 << (len(channels) - 1)
    if input_shape[0] % step or input_shape[1] % step:
        raise ShapeError(
            f"with {len(channels)} levels height and width must be divisible by {step}, not "
            f"{input_shape[:2]}",
            where="model unet",
            remedy="set fewer levels (model.channels), or pad the images",
        )
    inner = _double_conv(channels[-1], groups)
    for here in reversed(channels[:-1]):
        inner = [
            *_double_conv(here, groups),
            Concat([Identity(), Sequential([MaxPool2D(2), *inner, ConvTranspose2D(here)])]),
            *_double_conv(here, groups),
        ]
    return [*inner, Conv2D(outputs, 1)]
