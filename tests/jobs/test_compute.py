"""Whole jobs with other models and optimizers than the default."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mpidl.train import checkpoint as ckpt
from tests.jobs.helpers import mpidl

RESNET = (
    "--set",
    "model.name=resnet",
    "--set",
    "model.size=tiny",
    "--set",
    "optim.lr=0.01",
)
EXTRAS = (
    "--set",
    "optim.clip_norm=1.0",
    "--set",
    "loss.label_smoothing=0.1",
    "--set",
    "loss.name=cross_entropy",
    "--set",
    "optim.weight_decay=0.01",
)


def newest(folder: Path) -> ckpt.Checkpoint:
    return ckpt.read(ckpt.list_checkpoints(folder / "run/checkpoints")[0])


@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_residual_networks_learn_and_resume(run_folder: Path, optimizer: str) -> None:
    """Batch norm over the ranks, running statistics in the checkpoint.

    A resumed run ends with the bits of a straight one.
    """
    options = (str(run_folder / "run.toml"), *RESNET, *EXTRAS, "--set", f"optim.name={optimizer}")
    straight = mpidl(2, "train", *options, "--json")
    assert straight.status == 0, straight.err
    assert straight.result["accuracy"] > 0.9
    wanted = newest(run_folder)
    assert wanted.buffers["state"].any()
    assert mpidl(2, "train", *options, "--overwrite", "--set", "train.max_steps=30").status == 0
    resumed = mpidl(2, "train", *options, "--resume")
    assert resumed.status == 0, resumed.err
    for name, array in newest(run_folder).buffers.items():
        assert array.tobytes() == wanted.buffers[name].tobytes(), name
    evaluated = mpidl(3, "evaluate", str(run_folder / "run"), "--json")
    assert evaluated.status == 0 and evaluated.result["accuracy"] > 0.9, evaluated.err


def test_a_rank_without_samples_takes_part_in_statistics(run_folder: Path) -> None:
    """500 samples in batches of 3: the last one has none for a rank. No hang."""
    options = ("--set", "train.global_batch=3", "--set", "train.epochs=1")
    job = mpidl(3, "train", str(run_folder / "run.toml"), *RESNET, *options)
    assert job.status == 0, job.err


def test_another_optimizer_cannot_resume(run_folder: Path) -> None:
    toml = str(run_folder / "run.toml")
    assert mpidl(2, "train", toml, "--set", "train.max_steps=3").status == 0
    job = mpidl(2, "train", toml, "--resume", "--set", "optim.name=adam")
    assert (
        job.status == 1 and "optim.name is 'adam'" in job.err and job.err.count("mpidl: error") == 1
    )


def test_weights_go_out_and_in(run_folder: Path) -> None:
    toml, path = str(run_folder / "run.toml"), run_folder / "w.safetensors"
    assert mpidl(1, "train", toml, "--set", "train.max_steps=30").status == 0
    assert mpidl(1, "export", str(run_folder / "run"), str(path)).status == 0
    before = ckpt.read(run_folder / "run/checkpoints/best.h5").buffers["parameters"]
    job = mpidl(
        2,
        "train",
        toml,
        "--overwrite",
        "--set",
        f"model.weights={path}",
        "--set",
        "train.max_steps=1",
        "--set",
        "optim.lr=1e-9",
    )
    assert job.status == 0, job.err
    np.testing.assert_allclose(newest(run_folder).buffers["parameters"], before, atol=1e-5)
    wrong = mpidl(
        2,
        "train",
        toml,
        "--overwrite",
        "--set",
        f"model.weights={path}",
        "--set",
        "model.name=mlp",
    )
    assert (
        wrong.status == 1 and "w.safetensors" in wrong.err and wrong.err.count("mpidl: error") == 1
    ), wrong.err


def test_summary_needs_no_launcher() -> None:
    job = mpidl(1, "summary", "resnet50", "--input", "224,224,3", "--classes", "1000", "--json")
    assert job.result["totals"]["parameters"] == 25_557_032  # as published
    assert mpidl(1, "summary", "cnn", "--input", "a,b").err.count("mpidl: error") == 1
    refused = mpidl(1, "summary", "vit", "--input", "8,8,3")
    assert refused.status == 1 and "a patch of 16" in refused.err
