"""A small convolutional network for images."""

from __future__ import annotations

from collections.abc import Sequence

from mpidl.nn import Conv2D, Dense, Flatten, Layer, MaxPool2D


def cnn(
    input_shape: tuple[int, ...],
    classes: int,
    *,
    channels: Sequence[int] = (32, 64),
    hidden: Sequence[int] = (128,),
) -> list[Layer]:
    """For each of `channels` a 3x3 convolution with ReLU and a 2x2 max-pool; then dense layers of the sizes `hidden`."""
    layers: list[Layer] = []
    for count in channels:
        layers += [Conv2D(count, 3, relu=True), MaxPool2D(2)]
    return [*layers, Flatten(), *(Dense(units, relu=True) for units in hidden), Dense(classes)]
