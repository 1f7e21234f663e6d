"""Fusion of adjacent layers, which saves a pass over a large array."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from mpidl.nn.layer import Layer
from mpidl.nn.layers.conv import Conv2D
from mpidl.nn.layers.pool import MaxPool2D


def fuse(layers: Sequence[Layer]) -> None:
    """Fuse adjacent layers of a sequence; called once for every sequence of layers.

    A max-pool that directly follows a convolution with ReLU applies the gradient of that ReLU while
    it scatters its own gradient: one pass over the large array instead of two.
    """
    for layer in layers:  # it may have been fused in a former model, with another neighbor
        if isinstance(layer, Conv2D):
            layer.relu_gradient_is_fused = False
        elif isinstance(layer, MaxPool2D):
            layer.applies_relu_gradient = False
    for before, layer in pairwise(layers):
        if isinstance(before, Conv2D) and isinstance(layer, MaxPool2D):
            fused = before.has_relu and layer.is_tiled
            before.relu_gradient_is_fused = layer.applies_relu_gradient = fused
