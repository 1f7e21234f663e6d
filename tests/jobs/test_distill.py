"""A run that learns from another one: it learns better, on any ranks, and resumes to equal bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mpidl.train import checkpoint as ckpt
from tests.jobs.helpers import mpidl

CONFIG = """
[data]
train = "{folder}/{data}"
test = "{folder}/{test}"
[model]
name = "mlp"
hidden = [{hidden}]
[task]
{task}
[optim]
name = "adam"
lr = 0.01
[train]
epochs = {epochs}
global_batch = 32
output = "{folder}/{run}"
"""


def circles(count: int, seed: int) -> dict[str, np.ndarray]:
    """Points (12,) in four classes, by the radius in two planes; the rest is noise."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 12)).astype(np.float32)
    inside = (x[:, :2] ** 2).sum(axis=1) < 1.4, (x[:, 2:4] ** 2).sum(axis=1) < 1.4
    return {"x": x, "label": (inside[0] + 2 * inside[1]).astype(np.uint8)}


def write(folder: Path, run: str, **options: object) -> str:
    given = {"data": "small", "test": "test", "hidden": 32, "task": "", "epochs": 40, "run": run}
    given |= options
    path = folder / f"{run}.toml"
    path.write_text(CONFIG.format(folder=folder, **given))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Much data, a little and test data; a teacher that has seen much."""
    made = tmp_path_factory.mktemp("distill")
    for seed, (name, count) in enumerate({"large": 4000, "small": 400, "test": 1000}.items()):
        np.savez(made / f"{name}.npz", **circles(count, seed))
        job = mpidl(1, "shard", f"{made}/{name}.npz", "--out", f"{made}/{name}")
        assert job.status == 0, job.err
    job = mpidl(2, "train", write(made, "teacher", data="large", hidden=96, epochs=12), "--json")
    assert job.status == 0 and job.result["accuracy"] > 0.85, job.err
    return made


def final(run: Path) -> ckpt.Checkpoint:
    return ckpt.read(ckpt.list_checkpoints(run / "checkpoints")[0])


def test_a_run_learns_from_a_teacher_and_resumes(folder: Path) -> None:
    teacher = f'[task.distill]\nrun = "{folder}/teacher"\ntemperature = 3.0\nweight = 0.9'
    alone = mpidl(1, "train", write(folder, "alone"), "--json")
    config = write(folder, "taught", task=teacher)
    taught = mpidl(1, "train", config, "--json")
    assert taught.status == 0 and "teacher: mlp" in taught.err, taught.err
    assert taught.result["accuracy"] > alone.result["accuracy"] + 0.03, (alone, taught)
    whole = final(folder / "taught")
    assert whole.meta.teacher is not None and final(folder / "alone").meta.teacher is None

    halves = ("--set", f"train.output={folder}/halves")
    first = mpidl(4, "train", config, *halves, "--set", "train.max_steps=20")
    assert first.status == 0, first.err
    resumed = mpidl(2, "train", config, *halves, "--resume")
    assert resumed.status == 0 and "resuming at step 20" in resumed.err, resumed.err
    again = final(folder / "halves")
    for name, array in whole.buffers.items():
        np.testing.assert_array_equal(array, again.buffers[name], err_msg=name)

    for setting in (f"{folder}/alone", ""):
        job = mpidl(2, "train", config, *halves, "--resume", "--set", f"task.distill.run={setting}")
        assert job.status != 0 and "does not learn from what task.distill names" in job.err


def test_teachers_that_are_of_no_use(folder: Path, tmp_path: Path) -> None:
    x = circles(40, 0)["x"]
    np.savez(tmp_path / "other.npz", x=x, label=(x[:, 0] > 0).astype(np.uint8))
    job = mpidl(1, "shard", f"{tmp_path}/other.npz", "--out", f"{folder}/other")
    assert job.status == 0, job.err
    job = mpidl(1, "train", write(folder, "two", data="other", test="other", epochs=1))
    assert job.status == 0, job.err
    quantized = str(tmp_path / "q.h5")
    job = mpidl(1, "quantize", f"{folder}/teacher", "--out", quantized)
    assert job.status == 0, job.err
    for run, words in {
        f"{folder}/two": "this number of classes 2, this run has 4",
        f"{folder}/none": "no checkpoint found",
        f"{folder}/student": "lies in the output folder of the run itself",
        quantized: "only predicts",
    }.items():
        job = mpidl(2, "train", write(folder, "student", task=f'distill = "{run}"'), "--overwrite")
        assert job.status != 0 and words in job.err, job.err
