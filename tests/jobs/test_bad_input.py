"""Bad input: all ranks stop together within seconds, with one message, a remedy and a status."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidl.data.hdf5 import h5py
from mpidl.train import checkpoint as ckpt
from tests.data.test_dataset import edit_manifest, flip_a_bit, reseal
from tests.jobs.conftest import blobs, write
from tests.jobs.helpers import Job, environment, finish, mpidl, start

SECONDS = 30


def expect(job: Job, *words: str, took: float = 0) -> None:
    """One message with these words, no success, no hang."""
    assert job.status not in (0, 124, 137), job.err
    assert job.err.count("mpidl: error") == 1, job.err
    for word in (*words, "what to do:"):
        assert word in job.err, f"{word!r} is missing in:\n{job.err}"
    assert "Traceback" not in job.err, job.err
    assert took < SECONDS


def bad_label(folder: Path) -> None:
    with h5py.File(folder / "train" / "shard-00002.h5", "r+") as file:
        file["label"][7] = 9
    reseal(folder / "train", 2)


def nan_data(folder: Path) -> None:
    arrays = blobs(500, 0)
    write(folder / "train", {"image": arrays["image"].astype(np.float32), "label": arrays["label"]})
    write(
        folder / "test",
        {"image": blobs(101, 1)["image"].astype(np.float32), "label": blobs(101, 1)["label"]},
    )
    with h5py.File(folder / "train" / "shard-00002.h5", "r+") as file:
        file["image"][7, 3, 3] = np.nan
    reseal(folder / "train", 2)


def other_shape(folder: Path) -> None:
    arrays = blobs(101, 1)
    write(folder / "test", {"image": arrays["image"][:, :8], "label": arrays["label"]})


DATA: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "truncated shard": (
        lambda f: (f / "train/shard-00001.h5").open("r+b").truncate(999),
        ["shard-00001.h5", "999 bytes"],
    ),
    "bit-flipped shard": (
        lambda f: flip_a_bit(f / "train/shard-00002.h5"),
        ["shard-00002.h5", "damaged"],
    ),
    "missing shard": (
        lambda f: (f / "train/shard-00000.h5").unlink(),
        ["shard-00000.h5", "missing"],
    ),
    "manifest that lies": (
        lambda f: edit_manifest(
            lambda t: (t["shards"][0].update(samples=999), t.update(samples=1333))
        )(f / "train"),
        ["manifest"],
    ),
    "no data set": (
        lambda f: (f / "train/manifest.json").unlink(),
        ["manifest.json", "mpidl shard"],
    ),
    "shape mismatch between train and test": (other_shape, ["(10, 10)", "(8, 10)"]),
    "label out of range": (bad_label, ["shard-00002.h5", "sample 7", "[0, 4)"]),
    "NaN in the data": (nan_data, ["shard-00002.h5", "sample 7", "finite"]),
}

SETTINGS: dict[str, tuple[list[str], list[str]]] = {
    "too few samples for the batch": (["train.global_batch=501"], ["500 samples", "501"]),
    "too small a batch for the ranks": (["train.global_batch=2"], ["global batch of 2", "3 ranks"]),
    "an unknown key": (["optim.learning_rat=0.1"], ["unknown key 'optim.learning_rat'"]),
    "a misspelt key": (["optim.momentun=0.1"], ["did you mean 'optim.momentum'?"]),
    "a value out of range": (["optim.lr=-1"], ["optim.lr"]),
    "a value of the wrong type": (["train.epochs=many"], ["train.epochs"]),
    "an unknown model": (["model.name=cmm"], ["cmm", "cnn"]),
    "an unknown model option": (["model.chanels=[3]"], ["chanels", "channels"]),
    "a model that does not fit": (["model.channels=[4,4,4,4,4]"], ["max_pool2d4"]),
    "a GPU that is not there": (["backend.name=cupy"], ["cupy"]),
    "a loss that is not finite": (["optim.lr=1e30"], ["not finite", "optim.lr"]),
    "an output that cannot be written": (["train.output=/dev/null/run"], ["/dev/null/run"]),
}


@pytest.mark.parametrize("name", DATA)
def test_bad_data(run_folder: Path, name: str) -> None:
    damage, words = DATA[name]
    damage(run_folder)
    started = time.monotonic()
    expect(mpidl(3, "train", str(run_folder / "run.toml")), *words, took=time.monotonic() - started)


@pytest.mark.parametrize("name", SETTINGS)
def test_bad_settings(run_folder: Path, name: str) -> None:
    settings, words = SETTINGS[name]
    started = time.monotonic()
    options = [part for setting in settings for part in ("--set", setting)]
    expect(
        mpidl(3, "train", str(run_folder / "run.toml"), *options),
        *words,
        took=time.monotonic() - started,
    )


def test_absent_and_malformed_configurations(run_folder: Path) -> None:
    expect(mpidl(2, "train", str(run_folder / "none.toml")), "none.toml", "check the path")
    (run_folder / "run.toml").write_text("[data\ntrain = 3")
    expect(mpidl(2, "train", str(run_folder / "run.toml")), "run.toml", "line 1")
    (run_folder / "run.toml").write_text("[model]\nname = 'cnn'")
    expect(mpidl(2, "train", str(run_folder / "run.toml")), "data")


def test_a_shard_that_breaks_while_training(run_folder: Path) -> None:
    """Damage behind the checks (verify is off): only the rank that owns the shard notices.

    All stop with its message.
    """
    with h5py.File(run_folder / "train" / "shard-00002.h5", "r+") as file:
        raw = file["image"][...]
        del file["image"]
        file.create_dataset("image", data=raw, chunks=(40, 10, 10), fletcher32=True)
        offset = file["image"].id.get_chunk_info(2).byte_offset
    with (run_folder / "train" / "shard-00002.h5").open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 64)
    job = mpidl(
        3,
        "train",
        str(run_folder / "run.toml"),
        "--set",
        "data.verify=false",
        "--set",
        "data.window_bytes=5000",
    )
    expect(job, "rank 2", "shard-00002.h5")


@pytest.mark.parametrize("ranks", [1, 3])
def test_disk_full_while_checkpointing(run_folder: Path, ranks: int) -> None:
    """A file-size limit stands for a full disk.

    The job ends with a message; the earlier checkpoint survives and is used.
    """
    toml = str(run_folder / "run.toml")
    assert mpidl(ranks, "train", toml, "--set", "train.max_steps=21").status == 0
    before = ckpt.read(ckpt.list_checkpoints(run_folder / "run/checkpoints")[0])
    script = run_folder / "limited.py"
    script.write_text(LIMITED)
    expect(
        finish(start(ranks, "python", str(script), "train", toml, "--resume")),
        "checkpoint",
        "intact",
    )
    assert not list((run_folder / "run/checkpoints").glob("*.partial"))
    after = ckpt.read(ckpt.list_checkpoints(run_folder / "run/checkpoints")[0])
    assert (
        after.path == before.path
        and after.buffers["parameters"].tobytes() == before.buffers["parameters"].tobytes()
    )
    assert mpidl(ranks, "train", toml, "--resume").status == 0


LIMITED = """
import resource, sys, mpidl.cli.main
from mpidl.comm.context import init
init()  # MPI makes large files of its own
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
sys.exit(mpidl.cli.main.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("driver", ["auto", "mpio-collective"])
def test_bad_data_behind_mpio(run_folder: Path, driver: str) -> None:
    """The shared file is open on all ranks when one of them finds a bad label.

    Still no hang, and one message.
    """
    write(run_folder / "train", blobs(500, 0), shared=True)
    with h5py.File(run_folder / "train" / "shard-00000.h5", "r+") as file:
        file["label"][499] = 9
    reseal(run_folder / "train", 0)
    expect(
        mpidl(3, "train", str(run_folder / "run.toml"), "--set", f"data.driver={driver}"),
        "rank 2",
        "sample 499",
    )


def test_nothing_to_resume(run_folder: Path) -> None:
    expect(mpidl(2, "train", str(run_folder / "run.toml"), "--resume"), "no usable checkpoint")


def test_resuming_with_another_model_or_order_of_data(run_folder: Path) -> None:
    toml = str(run_folder / "run.toml")
    assert mpidl(2, "train", toml, "--set", "train.max_steps=3").status == 0
    expect(
        mpidl(2, "train", toml, "--resume", "--set", "model.name=mlp"),
        "another model",
    )
    expect(mpidl(2, "train", toml, "--resume", "--set", "train.seed=1"), "train.seed")


CRASH = """
import sys, mpidl.cli.main
from mpidl.train.engine import TrainingStep
from mpidl.train.trainer import Trainer
from mpidl.comm.context import init
original, calls = {method}, []
def broken(self, *args, **kw):
    calls.append(1)
    if init().rank == 1 and len(calls) == 6:
        raise {error}
    return original(self, *args, **kw)
{method} = broken
sys.exit(mpidl.cli.main.main(sys.argv[1:]))
"""


STRATEGIES = [
    "allreduce",
    "zero",
    "zero --set sync.stage=3",
    "local_sgd",
    "gossip",
]


@pytest.mark.parametrize(
    ("method", "error", "strategy"),
    [
        ("TrainingStep._run_pass", "ValueError('a bug')", "allreduce"),
        ("Trainer._report", "ValueError('a bug')", "allreduce"),
        ("Trainer._report", "MemoryError()", "allreduce"),
        *(("TrainingStep._run_pass", "MemoryError()", strategy) for strategy in STRATEGIES),
    ],
)
def test_an_exception_on_one_rank_ends_the_job(
    run_folder: Path, method: str, error: str, strategy: str
) -> None:
    """Inside the guarded part of a step all ranks agree; outside it the failing rank ends the job.

    Never a hang.
    """
    script = run_folder / "crash.py"
    script.write_text(CRASH.format(method=method, error=error))
    started = time.monotonic()
    options = f"--set sync.strategy={strategy}".split()
    job = finish(start(3, "python", str(script), "train", str(run_folder / "run.toml"), *options))
    assert job.status not in (0, 124, 137)
    assert time.monotonic() - started < SECONDS
    assert ("a bug" if "Value" in error else "emory") in job.err


def test_wrong_command_lines_are_reported_once() -> None:
    job = mpidl(3, "train")
    assert job.status == 2 and job.err.count("usage:") == 1
    job = mpidl(2, "tarin")
    assert job.status == 2 and job.err.count("invalid choice") == 1


def test_the_wrong_launcher_is_noticed(run_folder: Path) -> None:
    """Another MPI's mpirun starts processes that each see one rank."""
    done = subprocess.run(
        ["mpidl", "train", str(run_folder / "run.toml")],
        env=environment(PMI_SIZE="4"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    expect(Job(done.returncode, done.stdout, done.stderr), "4 processes", "sees only one")


def test_errors_in_json_mode_leave_stdout_clean(run_folder: Path) -> None:
    job = mpidl(2, "evaluate", str(run_folder / "run"), "--json")
    expect(job, "no checkpoint")
    assert not [line for line in job.out.splitlines() if line.startswith("{")]


def test_manifest_from_json_tools_still_loads(run_folder: Path) -> None:
    """People edit JSON with tools that change its layout."""
    path = run_folder / "train" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert mpidl(1, "train", str(run_folder / "run.toml"), "--set", "train.max_steps=1").status == 0


@pytest.mark.parametrize(
    "options", [[], ["--shared"], ["--compress", "gzip"]], ids=["shards", "shared", "gzip"]
)
def test_disk_full_while_sharding(run_folder: Path, options: list[str]) -> None:
    """HDF5 used to end the ranks with a segmentation fault after its message."""
    np.savez(run_folder / "a.npz", **blobs(3000, 0))  # type: ignore[arg-type]
    script = run_folder / "limited.py"
    script.write_text(LIMITED)
    job = finish(
        start(
            2,
            "python",
            str(script),
            "shard",
            str(run_folder / "a.npz"),
            "--out",
            str(run_folder / "new"),
            *options,
        )
    )
    expect(job, "File too large", "ulimit -f")
    assert job.status == 1 and "Segmentation" not in job.err and not list(run_folder.glob("new*"))


def test_full_disk_while_predicting_and_exporting(run_folder: Path) -> None:
    toml, out = str(run_folder / "run.toml"), run_folder / "out"
    wide = ("--set", "model.name=mlp", "--set", "model.hidden=[200]")
    assert mpidl(2, "train", toml, "--set", "train.max_steps=3", *wide).status == 0
    script = run_folder / "limited.py"
    script.write_text(LIMITED.replace("40_000", "3_000"))
    out.mkdir()
    data, run = str(run_folder / "train"), str(run_folder / "run")
    for command in (
        ["predict", run, data, "--out", str(out / "p.csv")],
        ["export", run, str(out / "w.safetensors")],
    ):
        job = finish(start(2, "python", str(script), *command))
        expect(job, "File too large", "ulimit -f")
        assert not list(out.iterdir()) and "train.output" not in job.err


@pytest.mark.parametrize("limit", ["a lock", "a file that is none"])
def test_a_file_out_of_reach_and_one_that_is_none(run_folder: Path, limit: str) -> None:
    """A reader needs no lock; what is no HDF5 file is not said to be damaged."""
    shard = run_folder / "train" / "shard-00001.h5"
    toml = ("train", str(run_folder / "run.toml"), "--set", "train.max_steps=1")
    if limit == "a lock":
        with shard.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert mpidl(2, *toml).status == 0
    else:
        shard.write_bytes(b"hello " * 1000)
        reseal(run_folder / "train", 1)
        expect(mpidl(2, *toml), "shard-00001.h5", "not an HDF5 file")


def test_misspelt_commands_are_recognized() -> None:
    job = mpidl(2, "trian")
    assert job.status == 2 and job.err.count("did you mean 'train'?") == 1


def test_settings_from_the_command_line_are_named(run_folder: Path) -> None:
    toml = str(run_folder / "run.toml")
    expect(
        mpidl(2, "train", toml, "--set", "sync.algorithm=rnig"),
        "--set sync.algorithm=rnig",
        "did you mean 'ring'?",
    )
    job = mpidl(2, "train", toml, "--set", "optim.gamma=0.5", "--set", "train.max_steps=1")
    assert job.status == 0 and job.err.count("optim.gamma has no effect") == 1


def test_a_rank_bound_to_a_part_of_its_cores_is_told_so(run_folder: Path) -> None:
    """As a plain `mpirun` binds: to one core."""
    bound = finish(
        start(
            1,
            "--bind-to",
            "core",
            "mpidl",
            "train",
            str(run_folder / "run.toml"),
            "--set",
            "train.max_steps=1",
        )
    )
    assert bound.status == 0, bound.err
    cores = len(os.sched_getaffinity(0))
    assert f"1 thread(s) each, on 1 of {cores} allotted core(s)" in bound.err
    assert bound.err.count("--bind-to none") == (1 if cores > 1 else 0), bound.err
