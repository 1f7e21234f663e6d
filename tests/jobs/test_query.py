"""A server announces itself in endpoint.json; `mpidl query` finds it and asks it, without MPI."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.jobs.conftest import CONFIG, blobs, write
from tests.jobs.helpers import Job, environment, finish, mpidl, start

STOPPED = 75


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run, run/, and its test data."""
    folder = tmp_path_factory.mktemp("query")
    write(folder / "train", blobs(500, 0))
    write(folder / "test", blobs(101, 1), 2)
    (folder / "run.toml").write_text(CONFIG.format(folder=folder))
    job = mpidl(2, "train", str(folder / "run.toml"), "--set", "train.epochs=1")
    assert job.status == 0, job.err
    return folder


def query(*args: str, **extra: str) -> Job:
    """`mpidl query` as a user runs it, in a process without a launcher."""
    done = subprocess.run(
        ["mpidl", "query", *args],
        env=environment(**extra),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    return Job(done.returncode, done.stdout, done.stderr)


@contextmanager
def served(ranks: int, *args: str) -> Iterator[list[Job]]:
    """A server for the time of a block; it is stopped as SLURM stops it. Its end is appended."""
    process = start(ranks, "mpidl", "serve", *args, "--http-port", "0", "--grpc-port", "0")
    ended: list[Job] = []
    try:
        yield ended
    finally:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGUSR1)  # mpirun, below `timeout`, tells the ranks
        ended.append(finish(process))


def predicted(folder: Path) -> dict[str, np.ndarray]:
    out = folder / "expected.npz"
    job = mpidl(1, "predict", str(folder / "run"), str(folder / "test"), "--out", str(out))
    assert job.status == 0, job.err
    with np.load(out) as archive:
        return {name: archive[name] for name in ("label", "probability")}


def test_a_server_is_found_and_asked(trained: Path, tmp_path: Path) -> None:
    run, images = trained / "run", blobs(101, 1)["image"]
    np.save(tmp_path / "x.npy", images)
    expected = predicted(trained)
    with served(2, str(run), "--channel", str(tmp_path / "channel")) as ended:
        out = tmp_path / "out.npz"
        arguments = ("--input", str(tmp_path / "x.npy"), "--output", str(out))
        job = query(str(run), *arguments, "--wait", "60", "--json")
        assert job.status == 0, job.err
        assert job.result == {"model": "run", "samples": 101, "output": str(out)}
        with np.load(out) as found:
            assert set(found.files) == set(expected)
            np.testing.assert_array_equal(found["label"], expected["label"])
            np.testing.assert_allclose(found["probability"], expected["probability"], atol=1e-6)
        check_endpoint(run / "endpoint.json")
        check_other_forms(run, images, expected, tmp_path)
        check_refusals(run, images, tmp_path)
        job = query(str(tmp_path / "channel"), "--input", str(tmp_path / "x.npy"), "--json")
        assert job.result["outputs"]["label"] == expected["label"].tolist(), job.err
    assert not (run / "endpoint.json").exists()
    (job,) = ended
    assert job.status == STOPPED, job.err
    assert "mpidl: note: from a login node: ssh -N -L " in job.err and "ssh" not in job.out
    refused = query(str(run), "--input", str(tmp_path / "x.npy"))
    assert refused.status == 1 and "no server runs there" in refused.err
    assert "serve.sbatch" in refused.err and "Traceback" not in refused.err


def check_endpoint(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    about = json.loads(path.read_text())
    assert set(about) == {
        "host", "address", "http_port", "grpc_port", "job", "pid", "models", "started",
        "fingerprint", "token_file",
    }  # fmt: skip
    assert about["fingerprint"] == about["token_file"] == ""  # it has no identity
    assert about["host"] == os.uname().nodename and about["models"] == ["run"]
    os.kill(about["pid"], 0)  # it is there


def check_other_forms(
    run: Path, images: np.ndarray, expected: dict[str, Any], folder: Path
) -> None:
    """An archive by name, float64, one sample, a table; found by endpoint.json; on stdout."""
    np.savez(folder / "named.npz", image=images.astype(np.float64), label=np.zeros(3))
    job = query(str(run / "endpoint.json"), "--input", str(folder / "named.npz"), "--json")
    assert job.result["outputs"]["label"] == expected["label"].tolist(), job.err
    np.save(folder / "one.npy", images[7])
    job = query(str(run), "--input", str(folder / "one.npy"))
    header, line = job.out.splitlines()
    assert dict(zip(header.split(","), line.split(","), strict=True))["label"] == str(
        expected["label"][7]
    )
    np.savetxt(folder / "x.csv", images.reshape(101, 100), fmt="%d", delimiter=",")
    address = json.loads((run / "endpoint.json").read_text())
    reached = f"{address['address']}:{address['http_port']}"
    job = query(str(folder), "--address", reached, "--input", str(folder / "x.csv"), "--json")
    assert job.result["outputs"]["label"] == expected["label"].tolist(), job.err


def check_refusals(run: Path, images: np.ndarray, folder: Path) -> None:
    np.save(folder / "flat.npy", images.reshape(101, 100))
    job = query(str(run), "--input", str(folder / "flat.npy"))
    assert job.status == 1 and "has samples of another shape: [101, 100]" in job.err
    assert "the model 'run' takes 'image' of shape (n, 10, 10" in job.err
    job = query(str(run), "--input", str(folder / "x.npy"), "--model", "other")
    assert job.status == 1 and "'other'" in job.err and "server says" in job.err
    job = query(str(run), "--input", str(folder / "x.npy"), "--output", str(folder / "x.npz" / "y"))
    assert job.status == 1 and "unknown suffix ''" in job.err


def test_a_server_that_was_killed_is_told_from_one_that_runs(trained: Path, tmp_path: Path) -> None:
    endpoint = {
        "host": os.uname().nodename,
        "address": "127.0.0.1",
        "http_port": 1,
        "grpc_port": 2,
        "job": "17",
        "pid": 1,
        "models": ["run"],
        "started": "2026-01-01T00:00:00Z",
    }
    path = tmp_path / "endpoint.json"
    path.write_text(json.dumps(endpoint))
    np.save(tmp_path / "x.npy", np.zeros((2, 10, 10)))
    job = query(str(path), "--input", str(tmp_path / "x.npy"))
    assert job.status == 1 and "http://127.0.0.1:1: no server answers" in job.err
    assert "killed leaves its endpoint.json behind" in job.err
    path.write_text(json.dumps(endpoint | {"host": "node17"}))
    job = query(str(tmp_path), "--input", str(tmp_path / "x.npy"))
    assert job.status == 1 and "srun --jobid=17 --overlap" in job.err
    assert "ssh -N -L 1:127.0.0.1:1 -L 2:127.0.0.1:2 node17" in job.err
    assert "--address 127.0.0.1:1" in job.err
