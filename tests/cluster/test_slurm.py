"""Training through a real SLURM: submitted, trained, accuracy read from its output; stopped by a signal, requeued, finished."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs.conftest import run_folder  # noqa: F401
from tests.jobs.helpers import environment

ROOT = Path(__file__).parent.parent.parent
SBATCH = ROOT / "scripts" / "slurm" / "train.sbatch"
CLUSTER = ROOT / "scripts" / "slurm" / "local_cluster.sh"
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a client of a SLURM that was started for these tests."""
    missing = [name for name in ("slurmctld", "slurmd", "munged") if not shutil.which(name)]
    if missing or os.geteuid() != 0:
        pytest.skip(f"a real SLURM needs root and slurm-wlm, munge (missing: {missing or 'root'})")
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([str(CLUSTER), "start", str(folder)], check=True, timeout=60)
    try:
        venv = Path(sys.executable).parent.parent
        yield environment(SLURM_CONF=str(folder / "slurm.conf"), MPIDL_VENV=str(venv))
    finally:
        subprocess.run([str(CLUSTER), "stop", str(folder)], check=True, timeout=60)


def submit(env: dict[str, str], folder: Path, *args: str) -> int:
    command = ["sbatch", "--parsable", "--time=5", f"--output={folder}/out.txt", f"--error={folder}/err.txt", str(SBATCH)]
    done = subprocess.run(
        [*command, str(folder / "run.toml"), *args], env=env, capture_output=True, text=True, check=True, timeout=30
    )
    return int(done.stdout.strip())


def state(env: dict[str, str], job: int) -> dict[str, str]:
    text = subprocess.run(
        ["scontrol", "show", "job", "--oneliner", str(job)], env=env, capture_output=True, text=True, check=True, timeout=30
    ).stdout
    return dict(item.split("=", 1) for item in text.split() if "=" in item)


def wait(env: dict[str, str], job: int, folder: Path) -> dict[str, str]:
    for _ in range(400):
        found = state(env, job)
        if found["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"):
            return found
        time.sleep(0.5)
    raise AssertionError(f"job {job} did not end\n{(folder / 'err.txt').read_text()}")


def result(folder: Path) -> dict[str, float]:
    lines = [line for line in (folder / "out.txt").read_text().splitlines() if line.startswith("{")]
    found: dict[str, float] = json.loads(lines[-1])
    return found


def test_a_submitted_job_trains(slurm: dict[str, str], run_folder: Path) -> None:  # noqa: F811
    job = submit(slurm, run_folder)
    ended = wait(slurm, job, run_folder)
    assert ended["JobState"] == "COMPLETED", (run_folder / "err.txt").read_text()
    found = result(run_folder)
    assert found["ranks"] == 2 and found["epochs"] == 3 and found["accuracy"] > 0.9


def test_the_signal_before_the_time_limit_saves_and_requeues(slurm: dict[str, str], run_folder: Path) -> None:  # noqa: F811
    job = submit(slurm, run_folder, "--set", "train.epochs=200")
    metrics = run_folder / "run" / "metrics.jsonl"
    for _ in range(200):
        if metrics.exists() and '"step": 50,' in metrics.read_text():
            break
        time.sleep(0.1)
    subprocess.run(["scancel", "--batch", "--signal=USR1", str(job)], env=slurm, check=True, timeout=30)
    ended = wait(slurm, job, run_folder)
    log = (run_folder / "err.txt").read_text()
    assert ended["JobState"] == "COMPLETED" and ended["Restarts"] == "1", log
    assert "asked to stop by a signal" in log and "resuming at step" in log
    assert result(run_folder)["steps"] == 200 * 21
    assert '"kind": "resume"' in metrics.read_text()
