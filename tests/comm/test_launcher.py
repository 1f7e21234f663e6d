"""The environment of launchers, and the refusal of processes that do not see each other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mpidl.comm import launcher
from mpidl.errors import PlatformError

OPEN_MPI, MPICH = "Open MPI v5.0.11, package: x\0", "MPICH Version: 4.2"
STEP = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1"}
LIST = (
    "MPI plugin types are...\n\tpmix\n\tnone\n\tpmi2\n"
    "specific pmix plugin versions available: pmix_v4\n"
)


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No launcher and no srun but the one that a test makes."""
    for name in [
        name
        for name in os.environ
        if name.startswith(("OMPI_", "PMI", "PRTE", "SLURM", "MPI_LOCAL"))
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def set_all(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "size", "refused"),
    [
        ({}, 1, False),
        ({"PMI_SIZE": "4"}, 1, True),
        (STEP, 1, True),
        (
            STEP | {"PMI_SIZE": "2", "PMI_RANK": "1"},
            1,
            True,
        ),  # srun --mpi=pmi2, which Open MPI does not speak
        (STEP | {"PMIX_RANK": "1"}, 2, False),  # srun --mpi=pmix
        (STEP | {"OMPI_COMM_WORLD_SIZE": "1"}, 1, False),  # srun mpirun -n 1: runs of their own
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, 1, False),  # within the batch script
        ({"SLURM_STEP_NUM_TASKS": "x"}, 1, False),
    ],
)
def test_processes_that_see_only_themselves(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], size: int, refused: bool
) -> None:
    set_all(monkeypatch, variables)
    if not refused:
        launcher.check(size, OPEN_MPI)
        return
    with pytest.raises(PlatformError, match="sees only one") as caught:
        launcher.check(size, OPEN_MPI)
    assert caught.value.agreed and "mpirun" in caught.value.remedy


@pytest.mark.parametrize(("library", "kind"), [(OPEN_MPI, "pmix"), (MPICH, "pmi2")])
def test_the_remedy_names_a_type_that_srun_offers(
    monkeypatch: pytest.MonkeyPatch, bare: Path, library: str, kind: str
) -> None:
    (bare / "srun").write_text(f"#!/bin/sh\necho '{LIST}'\n")
    (bare / "srun").chmod(0o755)
    set_all(monkeypatch, STEP)
    remedy = launcher.singletons_error(library).remedy
    assert (
        remedy.startswith(f"srun --mpi={kind} -n 2 mpidl") and "offers pmix, none, pmi2;" in remedy
    )
    (bare / "srun").write_text("#!/bin/sh\necho 'srun: none'\necho 'srun: MPI types are...' >&2")
    assert launcher.singletons_error(library).remedy.startswith(
        "mpirun -n 2 mpidl ... in the batch script"
    )
    (bare / "srun").unlink()
    assert "offers nothing" in launcher.singletons_error(library).remedy


@pytest.mark.parametrize(
    ("variables", "open_mpi", "mpich"),
    [
        ({}, True, True),
        (STEP, False, False),
        (STEP | {"PMI_RANK": "0"}, False, True),
        (STEP | {"PMIX_RANK": "0"}, True, True),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, True, False),
    ],
)
def test_commands_without_mpi_see_it_too(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], open_mpi: bool, mpich: bool
) -> None:
    set_all(monkeypatch, variables)
    assert (launcher.can_connect(OPEN_MPI), launcher.can_connect(MPICH)) == (open_mpi, mpich)


def test_numbers_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {"A": "2(x3),1", "B": "none", "C": "", "D": "9" * 50})
    assert [launcher.read_count([name], 7) for name in "ABCDE"] == [2, 7, 7, 999_999_999, 7]
    assert launcher.rank() == 0 and launcher.local_size() == 1 and not launcher.is_launched()
