"""Runs with augmentation: the same bits for any number of ranks and after a resume."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.jobs.helpers import mpidl
from tests.jobs.test_regression import folder as field_folder  # noqa: F401 (a fixture)
from tests.jobs.test_train import final, losses

AUGMENT = """
[augment]
crop = { padding = 2 }
flip = { vertical = 0.5 }
cutout = { size = 3 }
mixup = { alpha = 0.4 }
"""


def test_rank_counts_and_resumed_runs_give_the_same_bits(run_folder: Path) -> None:
    config = run_folder / "run.toml"
    plain, text = run_folder / "plain.toml", config.read_text()
    plain.write_text(text)
    config.write_text(text + AUGMENT)

    def train(ranks: int, name: str, *args: str, file: Path = config) -> None:
        output = f"train.output={run_folder}/{name}"
        # windows of a few steps: samples are rows of several pieces
        window = "data.window_bytes=20000"
        job = mpidl(
            ranks, "train", str(file), "--json", "--set", output, "--set", window,
            "--set", "train.epochs=2", *args,
        )  # fmt: skip
        assert job.status == 0, job.err

    train(1, "one")
    train(1, "plain", file=plain)
    wanted, parameters = losses(run_folder, "one"), final(run_folder, "one").buffers["parameters"]
    assert (losses(run_folder, "plain") != wanted).all(), "nothing was augmented"
    train(2, "two")
    train(4, "four", "--set", "train.max_steps=30")
    train(2, "four", "--resume")
    for name in ("two", "four"):
        np.testing.assert_array_equal(losses(run_folder, name), wanted)
        assert final(run_folder, name).buffers["parameters"].tobytes() == parameters.tobytes()


def test_fields_are_moved_and_mixed_with_their_targets(field_folder: Path) -> None:
    text = (field_folder / "run.toml").read_text()
    runs = {
        "moved": "[augment]\nroll = {}\nrotate = {}\n",
        "mixed": "[augment]\nroll = {}\nrotate = {}\ncutmix = {}\n",
        "parts": "[augment]\npatch = { size = [8, 8] }\nrotate = {}\nnoise = { std = 0.01 }\n",
    }
    for name, augment in runs.items():
        config = field_folder / f"{name}.toml"
        config.write_text(text + augment)
        output = f"train.output={field_folder}/{name}"
        job = mpidl(2, "train", str(config), "--json", "--set", output)
        assert job.status == 0, job.err
    moved, mixed, parts = (losses(field_folder, name) for name in runs)
    assert moved[-1] < 0.5 * moved[0] and (moved != mixed).any()
    assert parts[-1] < 0.7 * parts[0]


def test_what_does_not_fit_is_refused_on_all_ranks(run_folder: Path) -> None:
    config = run_folder / "run.toml"
    job = mpidl(2, "train", str(config), "--set", "augment.crop.padding=10")
    assert job.status != 0 and "augment.crop pads by 10 pixels" in job.err
    job = mpidl(2, "train", str(config), "--set", "augment.patch.size=[4,4]")
    assert job.status != 0 and "cannot be trained on parts of samples" in job.err
