"""Weights to and from safetensors files of our own, and which format a file has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mpidl.backend.numpy_ops import NumpyOps
from mpidl.errors import CheckpointError
from mpidl.models import build_layers
from mpidl.models.weights import FORMATS, detect_format, load_weights, save_weights
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


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("dense1.weight", "mpidl"),
        ("layer1.0.conv1.weight", "torchvision"),
        ("transformer.h.0.attn.c_attn.weight", "gpt2"),
        ("h.0.attn.c_attn.weight", "gpt2"),
    ],
)
def test_the_names_in_a_file_show_its_format(name: str, found: str) -> None:
    assert detect_format({name: np.zeros(1)}) is FORMATS[found]
    assert list(FORMATS)[-1] == "mpidl", "the format that matches every file comes last"
