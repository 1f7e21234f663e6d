"""Multi-layer perceptron."""

from __future__ import annotations

from mpidl.models.base import model
from mpidl.nn import Dense, Flatten, Layer
from mpidl.options import Positive


@model(samples="any", tiny={"hidden": (32,)})
def mlp(
    input_shape: tuple[int, ...], outputs: int, *, hidden: tuple[Positive, ...] = (256, 256)
) -> list[Layer]:
    """Multi-layer perceptron with ReLU on flattened samples.

    Args:
        hidden: Sizes of the hidden layers.
    """
    return [Flatten(), *(Dense(units, relu=True) for units in hidden), Dense(outputs)]
