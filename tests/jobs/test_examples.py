"""The examples learn what they are about, in a short run on two ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.jobs.helpers import finish, mpidl, start

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"
EXAMPLES, CONFIGS = SCRIPTS / "examples", SCRIPTS / "configs"
TEXT = Path("/usr/share/common-licenses/GPL-3")


@pytest.mark.skipif(not TEXT.exists(), reason="no Debian: no text at hand")
def test_gpt_learns_a_text() -> None:
    job = finish(start(2, "python", str(EXAMPLES / "gpt_text.py"), "--steps", "300", "--json"))
    assert job.status == 0, job.err
    assert job.result["held_out_nats"] < 0.8 * job.result["letter_frequencies_nats"]
    assert len(job.result["sample"]) == 120


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
