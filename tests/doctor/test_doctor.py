"""The doctor: what it finds here, and what it says about problems."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpidl.doctor.libraries import check_hdf5, check_launcher, check_mpi, check_mpirun


def run(**environment: str) -> tuple[int, dict[str, dict[str, str]]]:
    done = subprocess.run(
        [sys.executable, "-m", "mpidl", "doctor", "--json"],
        env=os.environ
        | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    report = json.loads(done.stdout.splitlines()[-1])
    return done.returncode, {finding["name"]: finding for finding in report["findings"]}


def test_a_healthy_machine() -> None:
    status, found = run()
    assert status == 0, found
    for name in (
        "MPI",
        "MPI threads",
        "fault tolerance",
        "GPU-aware MPI",
        "mpirun",
        "HDF5",
        "BLAS",
        "C kernels",
        "GPU",
        "threads",
        "optional packages",
    ):
        assert found[name]["value"]
        assert found[name]["state"] != "problem"


def test_a_kernel_forced_on_blas_is_mentioned() -> None:
    _, found = run(OPENBLAS_CORETYPE="Haswell")
    assert "unset it" in found["BLAS"]["advice"]


def test_missing_c_kernels_are_mentioned() -> None:
    _, found = run(MPIDL_CPU_LEVEL="none")
    assert "C compiler" in found["C kernels"]["advice"]


def test_two_mpi_libraries_are_a_problem() -> None:
    probe = {
        "vendor": "Open MPI 5.0.11",
        "version": "x",
        "thread": "multiple",
        "ft": True,
        "gpu": False,
        "libmpi": ["/a/libmpi.so.40", "/b/libmpi.so.40"],
    }
    found = {finding.name: finding for finding in check_mpi(probe)}
    assert found["libmpi"].state == "problem" and "rebuild h5py" in found["libmpi"].advice


def test_an_mpi_that_does_not_start_is_a_problem() -> None:
    assert check_mpi({"error": "no libmpi"})[0].state == "problem"


def test_a_serial_h5py_says_what_is_lost() -> None:
    finding = check_hdf5({"h5py": ["3.16", "1.14", False]})[0]
    assert (
        finding.state == "note"
        and "HDF5_MPI=ON" in finding.advice
        and "one shard per rank" in finding.advice
    )


def test_a_launcher_of_another_mpi_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "mpirun"
    fake.write_text("#!/bin/sh\necho 'mpirun (Open MPI) 4.1.4'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert check_mpirun("Open MPI 5.0.11").state == "problem"
    assert check_mpirun("Open MPI 4.1.4").state == "ok"


def test_help_does_not_start_mpi() -> None:
    code = (
        "import mpidl.cli.main as m\ntry: m.main(['--help'])\nexcept SystemExit: pass\n"
        "from mpidl.comm import mpi\nassert not mpi.load().Is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_srun_without_a_connection_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "PMI_SIZE",
        "PMI_RANK",
        "PMIX_RANK",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert [finding.state for finding in check_launcher("Open MPI v5.0.11")] == ["ok", "problem"]
    assert [finding.state for finding in check_launcher("")] == [
        "ok"
    ]  # MPI itself is the problem then
    monkeypatch.setenv("PMIX_RANK", "0")
    assert [finding.state for finding in check_launcher("Open MPI v5.0.11")] == ["ok"]
