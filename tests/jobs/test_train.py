"""Whole training runs: results, equality between rank counts, killing and resuming."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from mpidl.data.hdf5 import h5py
from mpidl.observe.metrics import read_metrics
from mpidl.train import checkpoint as ckpt
from tests.jobs.helpers import Job, finish, mpidl, start

STOPPED = 75


def train(folder: Path, ranks: int, *args: str) -> Job:
    return mpidl(ranks, "train", str(folder / "run.toml"), "--json", *args)


def final(folder: Path, run: str = "run") -> ckpt.Checkpoint:
    return ckpt.read(ckpt.list_checkpoints(folder / run / "checkpoints")[0])


def losses(folder: Path, run: str = "run") -> np.ndarray:
    records = [
        record
        for record in read_metrics(folder / run / "metrics.jsonl")
        if record["kind"] == "step"
    ]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return np.array([record["loss"] for record in records])


def test_train_evaluate_predict(run_folder: Path) -> None:
    job = train(run_folder, 2)
    assert job.status == 0, job.err
    result = job.result
    assert (
        result["ranks"] == 2
        and result["epochs"] == 3
        and result["steps"] == 63
        and result["samples"] == 101
    )
    assert result["accuracy"] > 0.9 and result["seconds"] > 0 and result["samples_per_second"] > 0
    for name in ("training.png", "metrics.jsonl", "config.json", "checkpoints/best.h5"):
        assert (run_folder / "run" / name).stat().st_size > 0
    assert list((run_folder / "run" / "tensorboard").iterdir())
    assert len(ckpt.list_checkpoints(run_folder / "run" / "checkpoints")) == 2
    best = max(
        r["accuracy"]
        for r in read_metrics(run_folder / "run" / "metrics.jsonl")
        if r["kind"] == "evaluation"
    )
    for ranks in (1, 3):
        evaluation = mpidl(ranks, "evaluate", str(run_folder / "run"), "--json").result
        assert evaluation["accuracy"] == pytest.approx(best) and evaluation["samples"] == 101
    prediction = mpidl(
        3,
        "predict",
        str(run_folder / "run"),
        str(run_folder / "test"),
        "--out",
        str(run_folder / "p.npz"),
        "--json",
    )
    assert prediction.result["samples"] == 101
    with np.load(run_folder / "p.npz") as archive:
        assert archive["probability"].shape == (101, 4)
        np.testing.assert_allclose(archive["probability"].sum(axis=1), 1, rtol=1e-5)
        np.testing.assert_array_equal(archive["label"], archive["probability"].argmax(axis=1))


def test_rank_counts_agree_and_resume_works_on_others(run_folder: Path) -> None:
    """All rank counts see the same batches, so they have the same loss curve.

    Also after the number of ranks changes half way. Those that divide the number of micro-batches
    give the same bits.
    """
    curves = {}
    for ranks in (1, 2, 3, 4):
        assert train(run_folder, ranks, "--set", f"train.output={run_folder}/r{ranks}").status == 0
        curves[ranks] = losses(run_folder, f"r{ranks}")
    for ranks in (2, 4):
        np.testing.assert_array_equal(curves[ranks], curves[1])
        assert (
            final(run_folder, f"r{ranks}").buffers["parameters"].tobytes()
            == final(run_folder, "r1").buffers["parameters"].tobytes()
        )
    np.testing.assert_allclose(curves[3], curves[1], rtol=1e-3, atol=1e-6)
    for first, second in ((3, 2), (4, 1)):
        output = f"train.output={run_folder}/mixed{first}"
        assert train(run_folder, first, "--set", output, "--set", "train.max_steps=30").status == 0
        resumed = train(run_folder, second, "--set", output, "--resume")
        assert resumed.status == 0 and "resuming at step 30" in resumed.err
        np.testing.assert_allclose(
            losses(run_folder, f"mixed{first}"), curves[1], rtol=1e-3, atol=1e-6
        )
    np.testing.assert_array_equal(losses(run_folder, "mixed4"), curves[1])


def children_of(parent: int) -> list[int]:
    """Processes below `parent` that run mpidl."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                status = (entry / "status").read_text()
            except OSError:
                continue
            if (
                b"bin/mpidl" in command
                and b"mpirun" not in command
                and os.getsid(int(entry.name)) is not None
            ):
                match = re.search(r"PPid:\s+(\d+)", status)
                if match and _descends(int(match.group(1)), parent):
                    found.append(int(entry.name))
    return sorted(found)


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            pid = int(re.search(r"PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()).group(1))  # type: ignore[union-attr]
        except OSError:
            return False
    return False


def wait_for_step(folder: Path, step: int, run: str) -> None:
    path = folder / run / "metrics.jsonl"
    for _ in range(600):
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was never reached")


SLOW = ("--set", "train.epochs=80")  # long enough to be hit in the middle


@pytest.mark.parametrize("how", ["kill -9 of one rank", "SIGUSR1", "SIGTERM to mpirun"])
def test_killed_and_resumed_equals_uninterrupted(run_folder: Path, how: str) -> None:
    common = (*SLOW, "--set", "checkpoint.every_steps=10", "--set", "train.output=")
    straight = train(run_folder, 2, *common[:-1], f"{common[-1]}{run_folder}/straight")
    assert straight.status == 0, straight.err
    output = f"{common[-1]}{run_folder}/hit"
    process = start(
        2, "mpidl", "train", str(run_folder / "run.toml"), "--json", *common[:-1], output
    )
    wait_for_step(run_folder, 75, "hit")
    if how == "kill -9 of one rank":
        os.kill(children_of(process.pid)[-1], signal.SIGKILL)
    else:
        mpirun = next(
            pid
            for pid in map(int, filter(str.isdigit, (p.name for p in Path("/proc").iterdir())))
            if _is_mpirun(pid, process.pid)
        )
        os.kill(mpirun, signal.SIGUSR1 if how == "SIGUSR1" else signal.SIGTERM)
    job = finish(process)
    assert job.status != 0
    if how == "SIGUSR1":
        assert job.status == STOPPED and job.result["stopped"] and "asked to stop" in job.err
    saved = final(run_folder, "hit").meta.step
    assert 60 <= saved < 1680
    resumed = train(run_folder, 2, *common[:-1], output, "--resume")
    assert resumed.status == 0, resumed.err
    a, b = final(run_folder, "straight"), final(run_folder, "hit")
    assert a.meta.step == b.meta.step == 1680
    for name in a.buffers:
        assert a.buffers[name].tobytes() == b.buffers[name].tobytes(), name
    np.testing.assert_array_equal(losses(run_folder, "straight"), losses(run_folder, "hit"))


def _is_mpirun(pid: int, ancestor: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(part.endswith((b"mpirun", b"prterun")) for part in command[:2]) and _descends(
        pid, ancestor
    )


def test_a_run_is_not_overwritten_by_accident(run_folder: Path) -> None:
    assert train(run_folder, 1, "--set", "train.max_steps=2").status == 0
    again = train(run_folder, 1, "--set", "train.max_steps=2")
    assert again.status == 1 and "--resume" in again.err and "--overwrite" in again.err
    assert train(run_folder, 1, "--set", "train.max_steps=2", "--overwrite").status == 0


def test_a_damaged_checkpoint_is_passed_over(run_folder: Path) -> None:
    assert train(run_folder, 1, "--set", "train.epochs=2").status == 0
    newest, older = ckpt.list_checkpoints(run_folder / "run" / "checkpoints")[:2]
    with h5py.File(newest) as held:
        place = held["parameters"].id.get_offset()
    with newest.open("r+b") as file:
        file.seek(place + 100)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    resumed = train(run_folder, 2, "--resume")
    assert resumed.status == 0 and "passing over" in resumed.err and f"from {older}" in resumed.err
    assert "21 step(s) are lost" in resumed.err
    older = ckpt.list_checkpoints(older.parent)[1]
    named = train(run_folder, 2, "--resume-from", str(older))
    assert named.status == 0 and "resuming at step 42" in named.err and "superseded" in named.err
    assert [path.name for path in ckpt.list_checkpoints(older.parent)] == [
        "step-00000063.h5",
        "step-00000042.h5",
    ]
    losses(run_folder)
    assert train(run_folder, 2, "--overwrite", "--set", "train.max_steps=2").status == 0
    assert not list(older.parent.glob("*.superseded*"))


def test_a_shared_file_through_mpio(run_folder: Path) -> None:
    from mpidl.data.hdf5 import is_parallel
    from tests.jobs.conftest import blobs, write

    write(run_folder / "train", blobs(500, 0), shared=True)
    assert train(run_folder, 1, "--set", f"train.output={run_folder}/one").status == 0
    drivers = ["auto", "mpio", "mpio-collective", "posix"] if is_parallel() else ["auto", "posix"]
    for driver in drivers:
        output = f"train.output={run_folder}/{driver}"
        job = train(
            run_folder,
            3,
            "--set",
            output,
            "--set",
            f"data.driver={driver}",
            "--set",
            "data.window_bytes=20000",
        )
        assert job.status == 0, job.err
        assert len(losses(run_folder, driver)) == 63


def test_shard_in_parallel_equals_shard_alone(run_folder: Path) -> None:
    from mpidl.data import Reader
    from tests.jobs.conftest import blobs

    arrays = blobs(57, 3)
    np.savez(run_folder / "raw.npz", **arrays)
    for ranks, options in ((1, ["--shards", "5"]), (3, ["--shards", "5"]), (3, ["--shared"])):
        out = run_folder / f"out{ranks}{len(options)}"
        job = mpidl(
            ranks, "shard", str(run_folder / "raw.npz"), "--out", str(out), *options, "--json"
        )
        assert job.status == 0 and job.result["samples"] == 57, job.err
        with Reader(out) as reader:
            for name, array in reader.read([(0, 57)]).items():
                np.testing.assert_array_equal(array, arrays[name])
