"""From raw files to a trained model with nothing but suggestions: shard, init, train on 2 ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.jobs.helpers import mpidl

Arrays = dict[str, np.ndarray]


def flowers(rng: np.random.Generator) -> Arrays:
    """Vectors of three classes."""
    y = rng.integers(0, 3, 1200)
    return {"x": rng.normal(2 * y[:, None], 1, (1200, 6)).astype(np.float32), "y": y}


def quarters(rng: np.random.Generator) -> Arrays:
    """Images whose brightest quarter is the class."""
    image = rng.integers(0, 120, (1200, 12, 12), dtype=np.uint8)
    label = rng.integers(0, 4, 1200)
    for one, k in zip(image, label, strict=True):
        one[k // 2 * 6 : k // 2 * 6 + 6, k % 2 * 6 : k % 2 * 6 + 6] += np.uint8(60)
    return {"image": image, "label": label}


def heat(rng: np.random.Generator) -> Arrays:
    """Periodic fields (16, 16, 1) at two times of the heat equation."""
    k = np.fft.fftfreq(16) * 16
    squares = k[:, None] ** 2 + k**2
    start = np.fft.fft2(rng.standard_normal((700, 16, 16))) * np.exp(-squares / 16)
    fields = [np.fft.ifft2(start * np.exp(-squares * time)).real for time in (0.0, 0.05)]
    u, label = (field[..., None].astype(np.float32) for field in fields)
    return {"u": u, "label": label}


def words(path: Path, rng: np.random.Generator) -> None:
    """A text in which each word is followed by one of two."""
    names = ["the ", "cat ", "sat ", "on ", "a ", "mat.\n"]
    steps = rng.integers(1, 3, 12_000).cumsum() % len(names)
    path.write_text("".join(names[step] for step in steps))


CASES: dict[str, tuple[Callable[..., Any], tuple[str, ...], str, str]] = {
    "flowers": (flowers, (), "classification", "mlp"),
    "quarters": (quarters, (), "classification", "cnn"),
    "heat": (heat, (), "regression", "fno"),
    "words": (words, ("--window", "32"), "language_model", "gpt"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_suggested_run_beats_chance_after_one_epoch(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, options, task, model = CASES[name]
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    source = tmp_path / ("words.txt" if name == "words" else f"{name}.npz")
    if name == "words":
        make(source, rng)
    else:
        np.savez(source, **make(rng))
    job = mpidl(2, "shard", source.name, "--out", "data", "--split", "0.8,0.2", *options)
    assert job.status == 0, job.err
    job = mpidl(1, "init", "data", "--json")
    assert job.status == 0, job.err
    assert (job.result["task"], job.result["model"]) == (task, model)
    job = mpidl(2, "train", "run.toml", "--set", "train.epochs=1", "--json")
    assert job.status == 0, job.err
    found = job.result
    if task == "classification":
        classes = 3 if name == "flowers" else 4
        assert found["accuracy"] > 1.6 / classes, found
    elif task == "regression":
        assert found["r2"] > 0.5, found
    else:
        assert found["bits_per_byte"] < 0.7 * math.log2(256), found
    predicted = mpidl(2, "predict", "runs/data", "data/test", "--out", "p.npz")
    assert predicted.status == 0, predicted.err
