"""Where h5py is serial the same commands work: rank 0 writes alone what ranks write together."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mpidl.data import Reader
from mpidl.train import checkpoint as ckpt
from tests.jobs.conftest import blobs
from tests.jobs.helpers import Job, finish, mpidl, start

SERIAL = """
import sys, mpidl.cli.main
from mpidl.data import hdf5, reader
hdf5.is_parallel = reader.is_parallel = lambda comm=None: False
sys.exit(mpidl.cli.main.main(sys.argv[1:]))
"""


def serial(folder: Path, ranks: int, *args: str) -> Job:
    script = folder / "serial.py"
    script.write_text(SERIAL)
    return finish(start(ranks, "python", str(script), *args))


def test_the_same_run_with_and_without_parallel_hdf5(run_folder: Path) -> None:
    np.savez(run_folder / "raw.npz", **blobs(57, 3))
    job = serial(
        run_folder,
        3,
        "shard",
        str(run_folder / "raw.npz"),
        "--out",
        str(run_folder / "shared"),
        "--shared",
    )
    assert job.status == 0, job.err
    with Reader(run_folder / "shared") as reader:
        np.testing.assert_array_equal(reader.read([(0, 57)])["image"], blobs(57, 3)["image"])
    toml = str(run_folder / "run.toml")
    for name, run in (("serial", serial), ("parallel", None)):
        options = (
            "train",
            toml,
            "--set",
            f"train.output={run_folder}/{name}",
            "--set",
            "train.epochs=1",
        )
        done = run(run_folder, 3, *options) if run else mpidl(3, *options)
        assert done.status == 0, done.err
    a, b = (
        ckpt.load_latest(run_folder / name / "checkpoints", print)
        for name in ("serial", "parallel")
    )
    for name in a.buffers:
        assert a.buffers[name].tobytes() == b.buffers[name].tobytes()
    resumed = serial(
        run_folder, 2, "train", toml, "--set", f"train.output={run_folder}/serial", "--resume"
    )
    assert resumed.status == 0, resumed.err
    refused = serial(run_folder, 2, "train", toml, "--overwrite", "--set", "data.driver=mpio")
    assert refused.status == 1 and "this h5py is serial" in refused.err
