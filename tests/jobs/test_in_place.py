"""Data sets in place on several ranks: memory, statistics, and files that change under a run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidl.data.hdf5 import early_allocation, h5py
from mpidl.data.manifest import load_manifest
from tests.jobs.helpers import finish, mpidl, start

CONFIG = """
[data]
train = "{folder}/set"
window_bytes = {window}
[model]
name = "mlp"
size = "tiny"
[optim]
lr = 1e-4
[train]
epochs = {epochs}
global_batch = 64
log_every = 1
output = "{folder}/run"
"""
SCRIPT = """
import json, os, sys
from mpidl.cli.main import main

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

before = peak()
status = main(sys.argv[1:])
rank = os.environ["OMPI_COMM_WORLD_RANK"]
open(f"{os.environ['PEAKS']}/{rank}.json", "w").write(json.dumps(peak() - before))
sys.exit(status)
"""
MIB = 1 << 20


def write_config(folder: Path, window: int, epochs: int = 1) -> str:
    path = folder / "run.toml"
    path.write_text(CONFIG.format(folder=folder, window=window, epochs=epochs))
    return str(path)


def test_memory_is_bounded_by_the_window(tmp_path: Path) -> None:
    """1 GiB, of which the disk holds nothing, in windows of 64 MiB on four ranks.

    A rank reads 128 MiB of it; one window and the next one are 32. Another 60 are MPI, packages,
    model and buffers. Rank 0 draws curves, too, which takes more than all of these.
    """
    samples = 1 << 14
    with h5py.File(tmp_path / "a.h5", "w") as file:
        shape = (samples, 128, 128)
        file.create_dataset("fields/u", shape, "f4", dcpl=early_allocation())
        file["y"] = np.arange(samples) % 4
    path = tmp_path / "a.h5"
    assert path.stat().st_size > 1 << 30 and path.stat().st_blocks * 512 < MIB
    job = mpidl(1, "index", str(path), "--out", str(tmp_path / "set"), "--no-statistics", "--json")
    assert job.status == 0 and job.result["samples"] == samples, job.err
    script = tmp_path / "peak.py"
    script.write_text(SCRIPT)
    config = write_config(tmp_path, 64 * MIB)
    command = ("train", config, "--set", "train.max_steps=128")
    job = finish(start(4, "python", str(script), *command, PEAKS=str(tmp_path)))
    assert job.status == 0, job.err
    peaks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(1, 4)]
    assert max(peaks) < 130, peaks
    assert not list((tmp_path / "set").glob("*.h5"))


def test_any_number_of_ranks_finds_the_same(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(5, 2, (50, 7, 3)).astype(np.float32)
    x[11, 0, 0] = np.nan
    for name, part in {"a": x[:20], "b": x[20:]}.items():
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["x"], file["y"] = part, np.arange(len(part)) % 3
    files = [str(tmp_path / "a.h5"), str(tmp_path / "b.h5")]
    exact = np.delete(x, 11, axis=0).astype(np.float64)
    sums = set()
    for ranks in (1, 2, 3):
        options = ("--out", str(tmp_path / "set"), "--overwrite", "--checksum", "--json")
        job = mpidl(ranks, "index", *files, *options)
        assert job.status == 0, job.err
        assert job.result["missing"]["x"] == {
            "nan": 1, "infinite": 0, "fill": 0, "samples": 1, "good": 49
        }  # fmt: skip
        manifest = load_manifest(tmp_path / "set")
        statistics = manifest.fields["x"].statistics
        assert statistics is not None and manifest.fields["y"].classes == 3
        assert statistics.mean == pytest.approx(exact.mean(), rel=1e-12)
        assert statistics.std == pytest.approx(exact.std(), rel=1e-12)
        sums.add(tuple(shard.sha256 for shard in manifest.shards))
    assert len(sums) == 1


def wait_for(path: Path, job: Any) -> None:
    for _ in range(600):
        if path.exists() and path.stat().st_size:
            return
        assert job.poll() is None, job.communicate()
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def test_all_ranks_end_when_a_file_changes_under_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["x"], file["y"] = rng.random((4096, 16)), rng.integers(0, 3, 4096)
    job = mpidl(1, "index", str(path), "--out", str(tmp_path / "set"))
    assert job.status == 0, job.err
    config = write_config(tmp_path, 64 << 10, epochs=100_000)
    running = start(3, "mpidl", "train", config)
    wait_for(tmp_path / "run" / "metrics.jsonl", running)
    with open(path, "ab") as file:
        file.write(b"more")
    ended = finish(running)
    assert ended.status == 1
    assert ended.err.count("mpidl: error") == 1 and "Traceback" not in ended.err, ended.err
    assert f"{path}: changed while it was in use: it had" in ended.err
    assert "run 'mpidl index' again" in ended.err
