"""State dicts of the residual networks of torchvision."""

from __future__ import annotations

import re

from mpidl.models.weights.formats import (
    Format,
    Source,
    Tensors,
    channels_last,
    norm_sources,
    transpose,
)
from mpidl.nn import Model, Residual


class TorchvisionResNet(Format):
    """State dict of torchvision.models.resnet*: conv1, bn1, layer<stage>.<block>, fc."""

    @staticmethod
    def matches(tensors: Tensors) -> bool:
        return any(name.endswith("layer1.0.conv1.weight") for name in tensors)

    @staticmethod
    def sources(model: Model, tensors: Tensors) -> dict[str, Source]:
        found = (re.match(r"layer(\d+)\.(\d+)\.", name) for name in tensors)
        blocks = sorted({(int(match[1]), int(match[2])) for match in found if match})
        residuals = [layer.name for layer in model.walk() if isinstance(layer, Residual)]
        sources = {
            "conv2d1.weight": Source("conv1.weight", channels_last),
            **norm_sources("batch_norm1", "bn1", running=True),
            "dense1.weight": Source("fc.weight", transpose),
            "dense1.bias": Source("fc.bias"),
        }
        for ours, (stage, block) in zip(residuals, blocks, strict=False):
            sources |= _block(ours, f"layer{stage}.{block}", tensors)
        return sources

    @staticmethod
    def is_ignored(name: str) -> bool:
        return name.endswith(".num_batches_tracked")


def _block(ours: str, theirs: str, tensors: Tensors) -> dict[str, Source]:
    pairs = {
        f"{ours}.body.{{}}{number}": (f"{theirs}.conv{number}", f"{theirs}.bn{number}")
        for number in range(1, 4)
    }
    pairs[f"{ours}.shortcut.{{}}1"] = (f"{theirs}.downsample.0", f"{theirs}.downsample.1")
    sources: dict[str, Source] = {}
    for name, (conv, norm) in pairs.items():
        if f"{conv}.weight" in tensors:
            sources[f"{name.format('conv2d')}.weight"] = Source(f"{conv}.weight", channels_last)
            sources |= norm_sources(name.format("batch_norm"), norm, running=True)
    return sources
