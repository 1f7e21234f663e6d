"""The models of mpidl in PyTorch, with the same parameters: for comparing results and times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mpidl.nn import (
    LSTM,
    Activation,
    BatchNorm,
    Concat,
    Conv1D,
    Conv2D,
    ConvTranspose2D,
    Dense,
    Embedding,
    Flatten,
    GlobalAvgPool,
    GroupNorm,
    Identity,
    Layer,
    LayerNorm,
    MaxPool2D,
    Model,
    ReLU,
    Residual,
    SelfAttention,
    Sequential,
    SpectralConv,
)

GELU = {"gelu": "none", "gelu_tanh": "tanh"}


class FlattenNHWC(nn.Module):
    """Flatten (n, c, h, w) in the order of mpidl, (h, w, c)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1).flatten(1) if x.ndim == 4 else x.flatten(1)


class TwinResidual(nn.Module):
    def __init__(self, body: nn.Module, shortcut: nn.Module, relu: bool) -> None:
        super().__init__()
        self.body, self.shortcut, self.relu = body, shortcut, relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x) + self.shortcut(x)
        return torch.relu(y) if self.relu else y


class TwinConcat(nn.Module):
    """Branches joined along the channels."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class TwinLSTM(nn.Module):
    """The states of all steps, or the last one."""

    def __init__(self, cell: nn.LSTM, sequences: bool) -> None:
        super().__init__()
        self.cell, self.sequences = cell, sequences

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.cell(x)
        return states if self.sequences else states[:, -1]


class TwinAttention(nn.Module):
    """Packed projections around PyTorch's own fused attention."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, width = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(n, t, width))


class TwinEmbedding(nn.Module):
    def __init__(self, rows: int, width: int, positions: torch.Tensor | None) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, width)
        self.positions = nn.Parameter(positions) if positions is not None else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.table(x)
        return y if self.positions is None else y + self.positions


class TwinSpectral(nn.Module):
    """Spectral convolution of (n, c, h, w) or (n, size, c), with our real and imaginary parts."""

    def __init__(self, weight: torch.Tensor, modes: int) -> None:
        super().__init__()
        self.weight, self.modes = nn.Parameter(weight), modes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        m, images = self.modes, x.ndim == 4
        x = x.permute(0, 2, 3, 1) if images else x
        size = x.shape[1:-1]
        axes = tuple(range(1, 1 + len(size)))
        spectrum = torch.fft.rfftn(x, dim=axes)
        w = torch.complex(self.weight[0], self.weight[1])
        made = torch.zeros(*spectrum.shape[:-1], w.shape[-1], dtype=spectrum.dtype)
        if images:
            made[:, :m, :m] = torch.einsum("nhwc,hwcd->nhwd", spectrum[:, :m, :m], w[:m])
            made[:, -m:, :m] = torch.einsum("nhwc,hwcd->nhwd", spectrum[:, -m:, :m], w[m:])
        else:
            made[:, :m] = torch.einsum("nwc,wcd->nwd", spectrum[:, :m], w)
        y = torch.fft.irfftn(made, s=size, dim=axes)
        return y.permute(0, 3, 1, 2) if images else y


def _tensor(model: Model, layer: Layer, name: str) -> torch.Tensor:
    return torch.from_numpy(np.array(model.parameters.value(f"{layer.name}.{name}")))


def _linear(model: Model, layer: Layer, prefix: str, bias: bool) -> nn.Linear:
    weight = _tensor(model, layer, f"{prefix}weight")
    made = nn.Linear(*weight.shape, bias=bias)
    made.weight.data = weight.T.contiguous()
    if bias:
        made.bias.data = _tensor(model, layer, f"{prefix}bias")
    return made


def _conv(model: Model, layer: Conv2D) -> nn.Module:
    weight = _tensor(model, layer, "weight")
    made = nn.Conv2d(
        weight.shape[2],
        weight.shape[3],
        layer.kernel_size,
        layer.strides,
        layer.pads,
        bias=layer.bias,
    )  # type: ignore[arg-type]
    made.weight.data = weight.permute(3, 2, 0, 1).contiguous()
    if layer.bias and made.bias is not None:
        made.bias.data = _tensor(model, layer, "bias")
    return made


def _conv_transpose(model: Model, layer: ConvTranspose2D) -> nn.Module:
    weight = _tensor(model, layer, "weight")
    sizes = (layer.kernel, layer.stride, layer.pad)
    made = nn.ConvTranspose2d(weight.shape[3], weight.shape[2], *sizes)
    made.weight.data = weight.permute(3, 2, 0, 1).contiguous()
    made.bias.data = _tensor(model, layer, "bias")
    return made


def _lstm(model: Model, layer: LSTM) -> nn.Module:
    weight = _tensor(model, layer, "x.weight")
    cell = nn.LSTM(weight.shape[0], layer.units, batch_first=True)
    cell.weight_ih_l0.data = weight.T.contiguous()
    cell.weight_hh_l0.data = _tensor(model, layer, "h.weight").T.contiguous()
    cell.bias_ih_l0.data = _tensor(model, layer, "x.bias")
    cell.bias_hh_l0.data = _tensor(model, layer, "h.bias")
    return TwinLSTM(cell, layer.sequences)


def _norm(model: Model, layer: BatchNorm | GroupNorm | LayerNorm) -> nn.Module:
    channels = model.parameters.value(f"{layer.name}.weight").size
    if isinstance(layer, BatchNorm):
        return nn.BatchNorm2d(channels, layer.eps, layer.momentum)
    if isinstance(layer, GroupNorm):
        return nn.GroupNorm(layer.groups, channels, layer.eps)
    return nn.LayerNorm(channels, layer.eps)


def _embedding(model: Model, layer: Embedding) -> nn.Module:
    positions = _tensor(model, layer, "positions") if layer.positions else None
    made = TwinEmbedding(layer.rows, layer.width, positions)
    made.table.weight.data = _tensor(model, layer, "weight")
    return made


def _pointwise(model: Model, layer: Conv1D) -> nn.Module:
    weight = _tensor(model, layer, "weight")
    if len(weight) > 1:
        raise TypeError(f"no twin of {layer.kind} with a kernel of {len(weight)}")
    made = nn.Linear(*weight.shape[1:])
    made.weight.data = weight[0].T.contiguous()
    made.bias.data = _tensor(model, layer, "bias")
    return made


def _attention(model: Model, layer: SelfAttention) -> nn.Module:
    weight = _tensor(model, layer, "qkv.weight")
    made = TwinAttention(weight.shape[0], layer.heads, layer.causal)
    made.qkv, made.out = (_linear(model, layer, prefix, True) for prefix in ("qkv.", "out."))
    return made


def _residual(model: Model, layer: Residual) -> nn.Module:
    parts = [nn.Sequential(*_convert(model, part)) for _, part in layer.children()]
    return TwinResidual(parts[0], parts[1] if len(parts) > 1 else nn.Identity(), layer.has_relu)


def _concat(model: Model, layer: Concat) -> nn.Module:
    return TwinConcat([nn.Sequential(*_convert(model, part)) for _, part in layer.children()])


# the twin of a layer, without the ReLU behind it
TWINS: dict[type[Layer], Callable[[Model, Any], nn.Module]] = {
    Activation: lambda model, layer: nn.GELU(GELU[layer.function]),
    BatchNorm: _norm,
    Concat: _concat,
    Conv1D: _pointwise,
    Conv2D: _conv,
    ConvTranspose2D: _conv_transpose,
    Dense: lambda model, layer: _linear(model, layer, "", layer.bias),
    Embedding: _embedding,
    Flatten: lambda model, layer: FlattenNHWC(),
    GlobalAvgPool: lambda model, layer: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    GroupNorm: _norm,
    Identity: lambda model, layer: nn.Identity(),
    LayerNorm: _norm,
    LSTM: _lstm,
    MaxPool2D: lambda model, layer: nn.MaxPool2d(layer.kernel, layer.stride, layer.pad),
    ReLU: lambda model, layer: nn.ReLU(),
    Residual: _residual,
    SelfAttention: _attention,
    SpectralConv: lambda model, layer: TwinSpectral(_tensor(model, layer, "weight"), layer.modes),
}


def _convert(model: Model, layer: Layer) -> Iterator[nn.Module]:
    """One layer as modules that follow one another."""
    if isinstance(layer, Sequential):
        for _, part in layer.children():
            yield from _convert(model, part)
        return
    make = TWINS.get(type(layer))
    if make is None:
        raise TypeError(f"no twin of {layer.kind}")
    yield make(model, layer)
    if isinstance(layer, Dense) and layer.activation:
        yield nn.GELU(GELU[layer.activation])
    if layer.has_relu and not isinstance(layer, Residual | ReLU):
        yield nn.ReLU()


def twin(model: Model) -> nn.Sequential:
    """A PyTorch module that computes the same as `model`, with copies of its parameters.

    It takes images (n, c, h, w), vectors, series (n, t, c) or tokens.
    """
    return nn.Sequential(*(module for layer in model.layers for module in _convert(model, layer)))


def parameters_like_ours(
    module: nn.Sequential, model: Model, *, gradients: bool = False
) -> NDArray[Any]:
    """Parameters (or gradients) of a twin in the layout of `model`'s flat buffer, padding zero.

    Args:
        module: The twin of dense and convolution layers.
        model: Our model.
        gradients: Take the gradients.
    """
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
