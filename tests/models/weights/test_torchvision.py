"""Residual networks of torchvision: the same weights give the same outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidl.models.weights import load_weights
from tests.models.weights.test_safetensors import make


def make_block(torch: Any, before: int, inner: int, stride: int, *, bottleneck: bool) -> Any:
    """A residual block with the names and the arithmetic of torchvision's."""
    nn = torch.nn
    outer = 4 * inner if bottleneck else inner
    kernels = ((1, 1), (3, stride), (1, 1)) if bottleneck else ((3, stride), (3, 1))

    class Block(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            width = before
            for number, (kernel, step) in enumerate(kernels, 1):
                out = outer if number == len(kernels) else inner
                conv = nn.Conv2d(width, out, kernel, step, kernel // 2, bias=False)
                setattr(self, f"conv{number}", conv)
                setattr(self, f"bn{number}", nn.BatchNorm2d(out))
                width = out
            self.downsample = None
            if stride > 1 or before != outer:
                conv = nn.Conv2d(before, outer, 1, stride, bias=False)
                self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outer))

        def forward(self, x: Any) -> Any:
            y = x
            for number in range(1, len(kernels) + 1):
                y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
                y = torch.relu(y) if number < len(kernels) else y
            return torch.relu(y + (self.downsample(x) if self.downsample is not None else x))

    return Block()


def make_resnet(torch: Any, blocks: tuple[int, ...], *, bottleneck: bool) -> Any:
    """A residual network with the names and the arithmetic of torchvision's."""
    nn = torch.nn

    class ResNet(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
            width = 64
            for stage, count in enumerate(blocks):
                layer = []
                for block in range(count):
                    stride = 2 if stage and not block else 1
                    inner = 64 << stage
                    layer.append(make_block(torch, width, inner, stride, bottleneck=bottleneck))
                    width = inner * (4 if bottleneck else 1)
                setattr(self, f"layer{stage + 1}", nn.Sequential(*layer))
            self.fc = nn.Linear(width, 10)

        def forward(self, x: Any) -> Any:
            x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
            for stage in range(len(blocks)):
                x = getattr(self, f"layer{stage + 1}")(x)
            return self.fc(x.mean(dim=(2, 3)))

    return ResNet()


@pytest.mark.peer
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_state_dicts_of_torchvision_resnets(
    tmp_path: Path, name: str, rng: np.random.Generator
) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    torch.manual_seed(0)
    blocks = (2, 2, 2, 2) if name == "resnet18" else (3, 4, 6, 3)
    module = make_resnet(torch, blocks, bottleneck=name == "resnet50")
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # statistics that are not trivial
            layer.running_mean.uniform_(-0.2, 0.2)
            layer.running_var.uniform_(0.5, 1.5)
    save_torch(module.state_dict(), tmp_path / "w.safetensors")
    model = make(name, (64, 64, 3), 10, stem="imagenet")
    load_weights(model, tmp_path / "w.safetensors")
    x = rng.standard_normal((4, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = module.eval()(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(model.forward(x)[0], wanted, rtol=1e-4, atol=1e-4)
