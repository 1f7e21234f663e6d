"""The worked examples of docs/examples.md learn what they are about, in short runs on two ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.jobs.helpers import mpidl

ROOT = Path(__file__).parent.parent.parent
CONFIGS, EXAMPLES = ROOT / "scripts" / "configs", ROOT / "scripts" / "examples"


def script(name: str, *arguments: str) -> None:
    """Run a script that makes data."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    subprocess.run(command, check=True, timeout=60)


def shard(source: Path, out: Path, *options: str) -> None:
    job = mpidl(2, "shard", str(source), "--out", str(out), *options)
    assert job.status == 0, job.err


def text(folder: Path) -> None:
    """The pages of this project: byte frequencies alone make 4.9 bits each."""
    pages = sorted((ROOT / "docs").glob("*.md"))
    (folder / "text.txt").write_text("".join(page.read_text() for page in pages))
    shard(folder / "text.txt", folder / "data", "--window", "64", "--split", "0.9,0.1")


def table(folder: Path) -> None:
    script("diabetes.py", str(folder / "diabetes.npz"))
    shard(folder / "diabetes.npz", folder / "data", "--split", "0.8,0.2")


def masks(folder: Path) -> None:
    script("shapes.py", str(folder / "shapes.npz"), "--count", "480")
    shard(folder / "shapes.npz", folder / "data", "--split", "0.8,0.2")


def series(folder: Path) -> None:
    script("sunspots.py", str(folder))
    for part in ("train", "test"):
        shard(folder / f"{part}.npz", folder / "data" / part)


# data, settings of a short run, and the metric with what a run that learned nothing is worse than
CASES: dict[str, tuple[Any, list[str], str, float]] = {
    "text-gpt": (text, ["data.epoch_samples=3200", "optim.lr=0.006"], "bits_per_byte", 4.6),
    "diabetes-mlp": (table, ["train.epochs=20"], "r2", 0.2),
    "shapes-unet": (masks, ["train.epochs=3", "model.channels=[8, 16]"], "mean_iou", 0.3),
    "sunspots-lstm": (series, ["train.epochs=15"], "r2", 0.4),
}


@pytest.mark.parametrize("name", CASES)
def test_an_example_learns(name: str, tmp_path: Path) -> None:
    make, settings, metric, bound = CASES[name]
    make(tmp_path)
    settings = [
        *settings,
        f"data.train={tmp_path}/data/train",
        f"data.test={tmp_path}/data/test",
        f"train.output={tmp_path}/run",
    ]
    words = [word for setting in settings for word in ("--set", setting)]
    job = mpidl(2, "train", str(CONFIGS / f"{name}.toml"), *words, "--json")
    assert job.status == 0, job.err
    found = job.result[metric]
    assert found < bound if metric == "bits_per_byte" else found > bound, job.result


def test_every_example_is_described() -> None:
    page = (ROOT / "docs" / "examples.md").read_text()
    for name in CASES:
        assert f"scripts/configs/{name}.toml" in page, name


def prepare(script: str, folder: Path, *sizes: str, label: tuple[str, ...] = ()) -> None:
    """Run a script that makes train.h5 and test.h5, and shard both."""
    command = [sys.executable, str(EXAMPLES / script), str(folder), *sizes]
    subprocess.run(command, check=True, timeout=100)
    for part in ("train", "test"):
        source, out = str(folder / f"{part}.h5"), str(folder / part)
        job = mpidl(1, "shard", source, "--out", out, *label)
        assert job.status == 0, job.err


def train(config: str, folder: Path, *settings: str) -> dict[str, Any]:
    """What a run of a configuration of the repository reports, on the data in `folder`."""
    own = (f"data.train={folder}/train", f"data.test={folder}/test", f"train.output={folder}/run")
    options = [word for setting in (*own, *settings) for word in ("--set", setting)]
    job = mpidl(2, "train", str(CONFIGS / config), "--json", *options)
    assert job.status == 0, job.err
    return job.result


def test_an_operator_learns_burgers_equation(tmp_path: Path) -> None:
    sizes = ("--samples", "192", "--test-samples", "32")
    prepare("make_burgers.py", tmp_path, *sizes, label=("--label", "end"))
    found = train("burgers.toml", tmp_path, "train.epochs=6", "model.width=16", "model.depth=3")
    assert found["relative_l2"] < 0.25


def test_an_operator_learns_to_step_a_flow(tmp_path: Path) -> None:
    sizes = ("--samples", "48", "--test-samples", "8", "--frames", "5", "--size", "16")
    prepare("make_fields.py", tmp_path, *sizes)
    small = ("model.width=12", "model.modes=5", "train.epochs=5", "train.global_batch=8")
    found = train("vorticity.toml", tmp_path, *small, "data.epoch_samples=384")
    with h5py.File(tmp_path / "test.h5") as file:
        u = file["vorticity"][:].reshape(8, 5, -1)
    change = np.linalg.norm(u[:, 1:] - u[:, :1], axis=2) / np.linalg.norm(u[:, 1:], axis=2)
    assert found["relative_l2"] < change.mean()  # better than a field that stands still
    assert found["relative_l2[1]"] < found["relative_l2[4]"]
