"""A server as a SLURM job: found, asked, drained by the signal, started again, canceled."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cluster.test_slurm import ROOT, slurm, state, wait  # noqa: F401
from tests.jobs.conftest import blobs, run_folder  # noqa: F401
from tests.jobs.helpers import mpidl

SBATCH = ROOT / "scripts" / "slurm" / "serve.sbatch"
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]


def submit(env: dict[str, str], folder: Path, *options: str) -> int:
    files = (f"--output={folder}/out.txt", f"--error={folder}/err.txt")
    command = ["sbatch", "--parsable", "--time=5", *files, *options, str(SBATCH)]
    done = subprocess.run(
        [*command, str(folder / "run")],
        env=env, capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    return int(done.stdout)


def query(env: dict[str, str], folder: Path, wait: int) -> subprocess.CompletedProcess[str]:
    arguments = ("--input", str(folder / "x.npy"), "--wait", str(wait), "--json")
    return subprocess.run(
        ["mpidl", "query", str(folder / "run"), *arguments],
        env=env, capture_output=True, text=True, check=False, timeout=wait + 60,
    )  # fmt: skip


def labels(done: subprocess.CompletedProcess[str]) -> list[int]:
    assert done.returncode == 0, done.stderr
    found: list[int] = json.loads(done.stdout)["outputs"]["label"]
    return found


def until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(300):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(what)


def test_a_server_is_found_started_again_and_canceled(
    slurm: dict[str, str],
    run_folder: Path,
) -> None:
    done = mpidl(2, "train", str(run_folder / "run.toml"), "--set", "train.epochs=1")
    assert done.status == 0, done.err
    np.save(run_folder / "x.npy", blobs(101, 1)["image"])
    endpoint = run_folder / "run" / "endpoint.json"
    job = submit(slurm, run_folder)
    first = labels(query(slurm, run_folder, 90))
    assert len(first) == 101
    about = json.loads(endpoint.read_text())
    assert about["job"] == str(job) and about["host"] == os.uname().nodename

    command = ["scancel", "--batch", "--signal=USR1", str(job)]  # as before the time limit
    subprocess.run(command, env=slurm, check=True, timeout=30)
    until(lambda: not endpoint.exists(), "the endpoint is withdrawn")
    assert labels(query(slurm, run_folder, 120)) == first
    after = json.loads(endpoint.read_text())
    assert after["job"] == str(job) and after["started"] > about["started"]
    assert state(slurm, job)["Restarts"] == "1"

    subprocess.run(["scancel", str(job)], env=slurm, check=True, timeout=30)
    assert wait(slurm, job, run_folder)["JobState"] == "CANCELLED"
    log = (run_folder / "err.txt").read_text()
    until(lambda: not endpoint.exists(), f"the endpoint is withdrawn\n{log}")
    assert log.count("from a login node: ssh -N -L") == 2
    time.sleep(2)
    assert state(slurm, job)["JobState"] == "CANCELLED", "it must not start again"
