"""Weights to and from safetensors; those of PyTorch models give the same outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mpidl.backend.numpy_ops import NumpyOps
from mpidl.errors import CheckpointError
from mpidl.models import build_layers
from mpidl.models.weights import load_weights, save_weights
from mpidl.nn import Model


def make(name: str, shape: tuple[int, ...], classes: int, **options: Any) -> Model:
    model = Model(build_layers(name, shape, classes, options), shape, NumpyOps())
    model.parameters.initialize(1)
    return model


def test_there_and_back(tmp_path: Path, rng: np.random.Generator) -> None:
    first, second = (make("resnet18", (16, 16, 3), 4, size="tiny") for _ in range(2))
    first.parameters.state[...] = rng.random(first.parameters.state.shape)
    second.parameters.values[...] = 0
    save_weights(first, tmp_path / "w.safetensors")
    load_weights(second, tmp_path / "w.safetensors")
    np.testing.assert_array_equal(first.parameters.values, second.parameters.values)
    name = "batch_norm1.running_var"
    np.testing.assert_array_equal(first.parameters.value(name), second.parameters.value(name))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("dense1.bias"), "dense1.bias is missing"),
        (lambda t: t.update(extra=np.zeros(3, np.float32)), "extra has no place"),
        (
            lambda t: t.update({"dense1.weight": np.zeros((3, 5), np.float32)}),
            r"dense1.weight has shape \(3, 5\)",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(
    tmp_path: Path, change: Any, words: str
) -> None:
    model, path = make("mlp", (4,), 3, hidden=[5]), tmp_path / "w.safetensors"
    save_weights(model, path)
    tensors = {name: tensor + 1 for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)
    before = model.parameters.values.copy()
    with pytest.raises(CheckpointError, match=words):
        load_weights(model, path)
    np.testing.assert_array_equal(model.parameters.values, before)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0 no header")
    with pytest.raises(CheckpointError, match=r"w\.safetensors"):
        load_weights(make("mlp", (4,), 3, hidden=[5]), tmp_path / "w.safetensors")


def torchvision_resnet(torch: Any, blocks: tuple[int, ...], *, bottleneck: bool) -> Any:
    """A residual network with the names and the arithmetic of torchvision's."""
    nn = torch.nn

    class Block(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, before: int, inner: int, stride: int) -> None:
            super().__init__()
            outer = 4 * inner if bottleneck else inner
            kernels = ((1, 1), (3, stride), (1, 1)) if bottleneck else ((3, stride), (3, 1))
            self.count, width = len(kernels), before
            for number, (kernel, step) in enumerate(kernels, 1):
                out = outer if number == len(kernels) else inner
                setattr(
                    self,
                    f"conv{number}",
                    nn.Conv2d(width, out, kernel, step, kernel // 2, bias=False),
                )
                setattr(self, f"bn{number}", nn.BatchNorm2d(out))
                width = out
            changed = stride > 1 or before != outer
            self.downsample = (
                nn.Sequential(
                    nn.Conv2d(before, outer, 1, stride, bias=False), nn.BatchNorm2d(outer)
                )
                if changed
                else None
            )

        def forward(self, x: Any) -> Any:
            y = x
            for number in range(1, self.count + 1):
                y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
                y = torch.relu(y) if number < self.count else y
            return torch.relu(y + (self.downsample(x) if self.downsample is not None else x))

    class ResNet(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
            width = 64
            for stage, count in enumerate(blocks):
                layer = []
                for block in range(count):
                    layer.append(Block(width, 64 << stage, 2 if stage and not block else 1))
                    width = (64 << stage) * (4 if bottleneck else 1)
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
    module = torchvision_resnet(torch, blocks, bottleneck=name == "resnet50")
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


@pytest.mark.peer
@pytest.mark.parametrize("recompute", [False, True])
def test_state_dicts_of_gpt2(tmp_path: Path, recompute: bool, rng: np.random.Generator) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sizes = {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 32, "vocab_size": 50}
    module = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    )
    module.save_pretrained(tmp_path)
    model = make("gpt", (20,), 50, width=48, depth=3, heads=4, recompute=recompute)
    load_weights(model, tmp_path / "model.safetensors")
    tokens = rng.integers(0, 50, (3, 20))
    with torch.no_grad():
        wanted = module.eval()(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(model.forward(tokens)[0], wanted, rtol=1e-4, atol=1e-4)
