"""Multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

from mpidl.nn import Dense, Flatten, Layer


def mlp(
    input_shape: tuple[int, ...], classes: int, *, hidden: Sequence[int] = (256, 256)
) -> list[Layer]:
    """Flatten, then dense layers with ReLU of the sizes `hidden`, then one to `classes` logits."""
    return [Flatten(), *(Dense(units, relu=True) for units in hidden), Dense(classes)]
