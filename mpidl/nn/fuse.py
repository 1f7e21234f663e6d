"""Fusion: neighboring layers of a list share one pass over a large array."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from mpidl.nn.layer import Layer
from mpidl.nn.layers.conv import Conv2D
from mpidl.nn.layers.pool import MaxPool2D


def fuse(layers: Sequence[Layer]) -> None:
    """Fuse layers that follow one another; every list of layers comes here once.

    A max-pool right behind a convolution with ReLU applies the gradient of that ReLU while it
    scatters its own: one pass over the array of the larger resolution instead of two.
    """
    for layer in layers:  # may come from a model that is gone, where its neighbors were others
        if isinstance(layer, Conv2D):
            layer.relu_gradient_is_fused = False
        elif isinstance(layer, MaxPool2D):
            layer.applies_relu_gradient = False
    for before, layer in pairwise(layers):
        if isinstance(before, Conv2D) and isinstance(layer, MaxPool2D):
            fused = before.has_relu and layer.is_tiled
            before.relu_gradient_is_fused = layer.applies_relu_gradient = fused
