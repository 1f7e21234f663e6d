"""Several data sets by weight and balanced classes, from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mpidl.train import checkpoint as ckpt
from tests.jobs.helpers import Job, mpidl

CONFIG = """
[data]
train = ["{folder}/a", "{folder}/b"]
weights = [0.7, 0.3]
balance = "classes"
epoch_samples = 210
[model]
name = "mlp"
[train]
epochs = 2
global_batch = 16
output = "{folder}/run"
"""
STEPS = 14  # of an epoch; the last batch has two samples


def samples(count: int, seed: int, classes: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.choice(classes, count, p=np.arange(1, classes + 1) * 2 / classes / (classes + 1))
    label[:classes] = np.arange(classes)
    image = rng.normal(label[:, None, None], 1, (count, 6, 6))
    return {"image": image.astype(np.float32), "label": label}


def write(folder: Path, name: str, arrays: dict[str, np.ndarray]) -> None:
    np.savez(folder / f"{name}.npz", **arrays)
    out = ("--out", str(folder / name), "--json")
    job = mpidl(2, "shard", str(folder / f"{name}.npz"), *out)
    assert job.status == 0, job.err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "a", samples(160, 0, 4))
    write(tmp_path, "b", samples(50, 1, 4))
    (tmp_path / "run.toml").write_text(CONFIG.format(folder=tmp_path))
    return tmp_path


def train(folder: Path, ranks: int, *settings: str, resume: bool = False) -> Job:
    flags = [flag for setting in settings for flag in ("--set", setting)]
    return mpidl(ranks, "train", str(folder / "run.toml"), "--json", *flags, *["--resume"] * resume)


@pytest.mark.parametrize("window_bytes", [1 << 30, 6000])
def test_a_mixture_is_resumed_on_other_ranks_bit_for_bit(folder: Path, window_bytes: int) -> None:
    window = f"data.window_bytes={window_bytes}"
    whole = train(folder, 2, window)
    assert whole.status == 0, whole.err
    output = f"train.output={folder}/halves"
    assert train(folder, 1, window, output, f"train.max_steps={STEPS + 5}").status == 0
    resumed = train(folder, 2, window, output, resume=True)
    assert resumed.status == 0 and f"resuming at step {STEPS + 5}" in resumed.err, resumed.err
    ends = [
        ckpt.read(ckpt.list_checkpoints(folder / name / "checkpoints")[0])
        for name in ("run", "halves")
    ]
    assert ends[0].meta.step == 2 * STEPS
    assert ends[0].meta.metrics == ends[1].meta.metrics
    for name, array in ends[0].buffers.items():
        np.testing.assert_array_equal(array, ends[1].buffers[name], err_msg=name)
