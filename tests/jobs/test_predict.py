"""Prediction by all ranks into one file: the same bytes for any ranks and interruptions."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpidl as mpidl_package
from mpidl.cli.predict import STOPPED
from mpidl.data.hdf5 import open_file
from mpidl.errors import DataError
from tests.jobs.conftest import blobs, write, write_run
from tests.jobs.helpers import finish, mpidl, start
from tests.jobs.test_train import children_of

SAMPLES = 3000


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, and data for some chunks."""
    run_folder = tmp_path_factory.mktemp("trained")
    write_run(run_folder)
    wide = ("--set", "model.channels=[24,48]")
    job = mpidl(2, "train", str(run_folder / "run.toml"), "--set", "train.max_steps=9", *wide)
    assert job.status == 0, job.err
    for name, samples in (("few", SAMPLES), ("many", 40_000)):
        write(run_folder / name, blobs(samples, 3))
    return run_folder


def test_any_number_of_ranks_writes_the_same_file(trained: Path, tmp_path: Path) -> None:
    run, data = str(trained / "run"), str(trained / "few")
    evaluated = mpidl(2, "evaluate", run, "--data", data, "--json").result
    files = []
    for ranks in (1, 2, 3):
        out = tmp_path / f"{ranks}.h5"
        job = mpidl(ranks, "predict", run, data, "--out", str(out), "--metrics", "--json")
        assert job.status == 0, job.err
        assert job.result["samples"] == SAMPLES and sum(job.result["per_class"]) == SAMPLES
        for key in ("loss", "accuracy", "macro_f1"):
            assert job.result[key] == pytest.approx(evaluated[key], rel=1e-6), key
        assert job.result["confusion_matrix"] == evaluated["confusion_matrix"]
        files.append(out.read_bytes())
    assert files[0] == files[1] == files[2]
    table, beside = tmp_path / "p.csv", tmp_path / "p.csv.h5"
    beside.write_text("of the user")
    refused = mpidl(2, "predict", run, data, "--out", str(table))
    assert refused.status != 0 and beside.read_text() == "of the user", refused.err
    beside.unlink()
    assert mpidl(3, "predict", run, data, "--out", str(table)).status == 0
    rows = np.loadtxt(table, delimiter=",", skiprows=1)
    with open_file(tmp_path / "1.h5") as file:
        np.testing.assert_array_equal(rows[:, 0], np.arange(SAMPLES))
        np.testing.assert_array_equal(rows[:, 0], file["sample"][...])
        np.testing.assert_array_equal(rows[:, 1], file["label"][...])
        np.testing.assert_allclose(rows[:, 2:], file["probability"][...], atol=1e-5)
    again = mpidl(2, "predict", run, data, "--out", str(table))
    assert again.status != 0 and "exists already" in again.err
    check_raw(trained, tmp_path, files[0], evaluated)


def check_raw(trained: Path, tmp_path: Path, sharded: bytes, evaluated: dict[str, Any]) -> None:
    """The same samples in an archive: the same metrics, and the keys that it has."""
    raw, out = tmp_path / "few.npz", tmp_path / "raw.h5"
    np.savez(raw, **blobs(SAMPLES, 3), id=np.arange(SAMPLES) + 7)
    job = mpidl(2, "predict", str(trained / "run"), str(raw), "--out", str(out), "--metrics",
                "--json")  # fmt: skip
    assert job.status == 0, job.err
    assert job.result["confusion_matrix"] == evaluated["confusion_matrix"]
    (tmp_path / "1.h5").write_bytes(sharded)
    with open_file(out) as file, open_file(tmp_path / "1.h5") as other:
        np.testing.assert_array_equal(file["key"][...], np.arange(SAMPLES) + 7)
        np.testing.assert_array_equal(file["probability"][...], other["probability"][...])
        about = json.loads(file.attrs["prediction"])
    assert about["backend"] == "numpy" and about["version"] == mpidl_package.__version__


def done(path: Path) -> int:
    """Samples of a file that are computed, whether they are marked or not."""
    try:
        with open_file(path) as file:
            return int((file["probability"][...].sum(axis=1) > 0).sum())
    except (OSError, DataError):
        return 0


@pytest.mark.parametrize("how", ["kill -9 of one rank", "SIGUSR1 to all"])
def test_an_interrupted_prediction_goes_on(trained: Path, tmp_path: Path, how: str) -> None:
    run, data, out = str(trained / "run"), str(trained / "many"), tmp_path / "p.h5"
    command = ("predict", run, data, "--json", "--metrics", "--out")
    process = start(2, "mpidl", *command, str(out))
    for _ in range(1000):
        if done(tmp_path / "p.h5.partial") > 4000:
            break
        time.sleep(0.01)
    ranks = [pid for pid in children_of(process.pid) if b"predict" in _command(pid)]
    if how == "SIGUSR1 to all":
        for pid in ranks:
            os.kill(pid, signal.SIGUSR1)
    else:
        os.kill(ranks[-1], signal.SIGKILL)
    job = finish(process)
    assert job.status != 0 and not out.exists(), job.out
    if how == "SIGUSR1 to all":
        assert job.status == STOPPED and 0 < job.result["done"] < job.result["chunks"]
    other = mpidl(2, "predict", run, data, "--out", str(out))
    assert other.status != 0 and "with another metrics" in other.err
    resumed = mpidl(3, *command, str(out))
    assert resumed.status == 0, resumed.err
    straight = tmp_path / "straight.h5"
    assert mpidl(1, *command, str(straight)).status == 0
    assert out.read_bytes() == straight.read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_files_are_scored_as_they_arrive(trained: Path, tmp_path: Path) -> None:
    """Each once, bad ones are reported; an interrupted one is gone on with by the next job."""
    run, inbox, out = str(trained / "run"), tmp_path / "in", tmp_path / "out"
    inbox.mkdir()
    out.mkdir()
    command = ("predict", run, "--watch", str(inbox), "--out", str(out), "--json", "--settle", "0")
    images = blobs(90, 5)["image"]
    np.savez(inbox / "first.npz", image=images[:40])
    (inbox / "bad.npz").write_bytes(b"no archive")
    process = start(2, "mpidl", *command)
    wait(lambda: (out / "first.npz.predictions.h5").exists())
    with (inbox / "second.npz.tmp").open("wb") as file:
        np.savez(file, image=images)
    (inbox / "second.npz.tmp").rename(inbox / "second.npz")
    wait(lambda: (out / "second.npz.predictions.h5").exists())
    wait(lambda: (out / "predictions.jsonl").read_bytes().count(b"\n") >= 3)
    ranks = [pid for pid in children_of(process.pid) if b"predict" in _command(pid)]
    os.kill(ranks[-1], signal.SIGTERM)  # one rank is enough
    job = finish(process)
    assert job.status == 0, job.err
    assert job.result["files"] == 2 and job.result["failed"] == 1
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    report = {line["file"]: line for line in lines}
    assert "bad.npz" in report["bad.npz"]["error"] and report["bad.npz"]["status"] == "failed"
    assert report["second.npz"]["samples"] == 90
    with open_file(out / "second.npz.predictions.h5") as file:
        shares = file["probability"][...]
    with open_file(out / "first.npz.predictions.h5") as file:
        np.testing.assert_allclose(file["probability"][...], shares[:40], rtol=1e-5)
    (inbox / "STOP").touch()
    again = mpidl(1, *command)
    assert again.status == 0 and again.result["files"] == again.result["failed"] == 0, again.err
    assert mpidl(2, "predict", run, "--watch", str(tmp_path / "no")).status != 0


def test_two_jobs_do_not_write_one_file(trained: Path, tmp_path: Path) -> None:
    run, data, out = str(trained / "run"), str(trained / "few"), tmp_path / "p.h5"
    partial = tmp_path / "p.h5.partial"
    partial.touch()
    with partial.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        job = mpidl(2, "predict", run, data, "--out", str(out))
    assert job.status != 0 and job.err.count("another prediction writes this file") == 1, job.err


def wait(happened: Callable[[], bool]) -> None:
    for _ in range(3000):
        if happened():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen in 30 s")


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_outputs_are_chosen(trained: Path, tmp_path: Path) -> None:
    run, data, out = str(trained / "run"), str(trained / "few"), tmp_path / "p.h5"
    wanted = ("--output", "top_k:2", "--output", "embedding:dense1")
    job = mpidl(2, "predict", run, data, "--out", str(out), *wanted)
    assert job.status == 0, job.err
    with open_file(out) as file:
        assert file["top_label"].shape == (SAMPLES, 2)
        assert file["embedding_dense1"].shape == (SAMPLES, 16)
    job = mpidl(2, "predict", run, data, "--out", str(tmp_path / "q.h5"), "--output", "value")
    assert job.status != 0 and job.err.count("is nothing that the task") == 1, job.err
