"""The models of mpidl in PyTorch, with the same parameters: for comparing results and times."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mpidl.nn import Conv2D, Dense, Flatten, MaxPool2D, Model, ReLU


class FlattenNHWC(nn.Module):
    """Flatten (n, c, h, w) in the order of mpidl, (h, w, c)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1).flatten(1) if x.ndim == 4 else x.flatten(1)


def twin(model: Model) -> nn.Sequential:
    """A PyTorch module that computes the same as `model` on (n, c, h, w) inputs, with copies of its parameters."""
    layers: list[nn.Module] = []
    for layer in model.layers:
        if isinstance(layer, (Conv2D, Dense)):
            weight = torch.from_numpy(np.array(model.parameters.value(f"{layer.name}.weight")))
            bias = torch.from_numpy(np.array(model.parameters.value(f"{layer.name}.bias")))
            if isinstance(layer, Conv2D):
                made: Any = nn.Conv2d(weight.shape[2], weight.shape[3], weight.shape[0], layer.stride, layer.pad)
                made.weight.data = weight.permute(3, 2, 0, 1).contiguous()
            else:
                made = nn.Linear(*weight.shape)
                made.weight.data = weight.T.contiguous()
            made.bias.data = bias
            layers.append(made)
            if layer.has_relu:
                layers.append(nn.ReLU())
        elif isinstance(layer, MaxPool2D):
            layers.append(nn.MaxPool2d(layer.k))
        elif isinstance(layer, Flatten):
            layers.append(FlattenNHWC())
        elif isinstance(layer, ReLU):
            layers.append(nn.ReLU())
        else:
            raise TypeError(f"no twin for {layer.kind}")
    return nn.Sequential(*layers)


def parameters_like_ours(module: nn.Sequential, model: Model, *, gradients: bool = False) -> NDArray[Any]:
    """The parameters (or gradients) of a twin in the layout of `model`'s flat buffer, padding zero."""
    flat = np.zeros(model.parameters.length, model.parameters.dtype)
    twins = [layer for layer in module if isinstance(layer, (nn.Conv2d, nn.Linear))]
    owners = [layer for layer in model.layers if isinstance(layer, (Conv2D, Dense))]
    for owner, layer in zip(owners, twins, strict=True):
        for name in ("weight", "bias"):
            tensor = getattr(layer, name)
            value = (tensor.grad if gradients else tensor).detach()
            if value.ndim == 4:
                value = value.permute(2, 3, 1, 0)
            elif value.ndim == 2:
                value = value.T
            slot = model.parameters.slots[f"{owner.name}.{name}"]
            flat[slot.start : slot.stop] = value.reshape(-1).numpy()
    return flat
