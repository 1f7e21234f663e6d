"""The child process that initializes MPI for the doctor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mpidl.doctor import probe


def test_the_probe_describes_mpi_and_h5py() -> None:
    found = probe.run_probe()
    assert {"version", "vendor", "thread", "ft", "gpu", "libmpi"} <= set(found), found
    assert found["thread"] in ("single", "funneled", "serialized", "multiple")
    assert len(found["h5py"]) == 3 and isinstance(found["h5py"][2], bool)


def test_the_probe_is_a_module_that_runs_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mpidl.doctor.probe"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(probe.MARK)]
    assert "vendor" in json.loads(line.removeprefix(probe.MARK))


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo first >&2; echo 'libmpi.so: cannot open' >&2; exit 3", "libmpi.so: cannot open"),
        ("exit 3", "exit status 3"),
        ("kill -SEGV $$", "exit status -11"),
        ("echo some words of MPI", "exit status 0"),
        ("exec sleep 30", "did not finish within 2 s"),
    ],
)
def test_an_mpi_that_crashes_or_hangs_is_a_finding(
    script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(probe, "sys", SimpleNamespace(executable=str(python)))
    monkeypatch.setattr(probe, "PROBE_SECONDS", 2)
    assert words in probe.run_probe()["error"]


def test_the_probe_is_no_rank_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nenv | grep -c '^OMPI_COMM\\|^PMIX_\\|^PMI_' >&2\n")
    python.chmod(0o755)
    monkeypatch.setattr(probe, "sys", SimpleNamespace(executable=str(python)))
    for name in ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"):
        monkeypatch.setenv(name, "0")
    assert probe.run_probe()["error"] == "0"
