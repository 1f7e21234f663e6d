"""A small convolutional network for images."""

from __future__ import annotations

from mpidl.models.base import model
from mpidl.nn import Conv2D, Dense, Flatten, Layer, MaxPool2D
from mpidl.options import Positive


@model(samples="image", tiny={"channels": (8, 16), "hidden": (32,)})
def cnn(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    channels: tuple[Positive, ...] = (32, 64),
    hidden: tuple[Positive, ...] = (128,),
) -> list[Layer]:
    """Convolutions with max-pooling, then dense layers.

    Args:
        channels: Channels of the 3x3 convolutions, each with ReLU and a 2x2 max-pool.
        hidden: Sizes of the hidden dense layers.
    """
    layers: list[Layer] = []
    for count in channels:
        layers += [Conv2D(count, 3, relu=True), MaxPool2D(2)]
    return [*layers, Flatten(), *(Dense(units, relu=True) for units in hidden), Dense(outputs)]
