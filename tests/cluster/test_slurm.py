"""Training through a real SLURM: submitted and trained; stopped by a signal, requeued, finished."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs.conftest import run_folder  # noqa: F401
from tests.jobs.helpers import environment

ROOT = Path(__file__).parent.parent.parent
SBATCH = ROOT / "scripts" / "slurm" / "train.sbatch"
CLUSTER = ROOT / "scripts" / "slurm" / "local_cluster.sh"
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a client of a SLURM that was started for these tests."""
    missing = [name for name in ("slurmctld", "slurmd", "munged") if not shutil.which(name)]
    if missing or os.geteuid() != 0:
        pytest.skip(f"a real SLURM needs root and slurm-wlm, munge (missing: {missing or 'root'})")
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([str(CLUSTER), "start", str(folder)], check=True, timeout=60)
    try:
        venv = Path(sys.executable).parent.parent
        yield environment(SLURM_CONF=str(folder / "slurm.conf"), MPIDL_VENV=str(venv))
    finally:
        subprocess.run([str(CLUSTER), "stop", str(folder)], check=True, timeout=60)


def submit(
    env: dict[str, str], folder: Path, *args: str, options: tuple[str, ...] = (), logs: str = ""
) -> int:
    """options: of sbatch. logs: what makes the names of the log files of this job its own."""
    files = (f"--output={folder}/out{logs}.txt", f"--error={folder}/err{logs}.txt")
    command = [
        "sbatch",
        "--parsable",
        "--time=5",
        *files,
        *options,
        str(SBATCH),
        str(folder / "run.toml"),
        *args,
    ]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=30)
    return int(done.stdout.strip())


def state(env: dict[str, str], job: int | str) -> dict[str, str]:
    text = subprocess.run(
        ["scontrol", "show", "job", "--oneliner", str(job)],
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
    return dict(item.split("=", 1) for item in text.split() if "=" in item)


def wait(env: dict[str, str], job: int | str, folder: Path, logs: str = "") -> dict[str, str]:
    for _ in range(400):
        found = state(env, job)
        if found["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"):
            return found
        time.sleep(0.5)
    raise AssertionError(f"job {job} did not end\n{(folder / f'err{logs}.txt').read_text()}")


def result(folder: Path, logs: str = "") -> dict[str, float]:
    lines = [
        line
        for line in (folder / f"out{logs}.txt").read_text().splitlines()
        if line.startswith("{")
    ]
    found: dict[str, float] = json.loads(lines[-1])
    return found


def signal_at(env: dict[str, str], job: int | str, metrics: Path, step: int) -> None:
    """The signal that SLURM sends before the time limit, once the run has come so far."""
    for _ in range(600):
        if metrics.exists() and f'"step": {step},' in metrics.read_text():
            break
        time.sleep(0.1)
    subprocess.run(
        ["scancel", "--batch", "--signal=USR1", str(job)], env=env, check=True, timeout=30
    )


def srun(env: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["srun", "-n", "2", *command],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_a_submitted_job_trains(slurm: dict[str, str], run_folder: Path) -> None:
    job = submit(slurm, run_folder)
    ended = wait(slurm, job, run_folder)
    assert ended["JobState"] == "COMPLETED", (run_folder / "err.txt").read_text()
    found = result(run_folder)
    assert found["ranks"] == 2 and found["epochs"] == 3 and found["accuracy"] > 0.9


def test_the_signal_before_the_time_limit_saves_and_requeues(
    slurm: dict[str, str], run_folder: Path
) -> None:
    job = submit(slurm, run_folder, "--set", "train.epochs=60")
    metrics = run_folder / "run" / "metrics.jsonl"
    signal_at(slurm, job, metrics, 50)
    ended = wait(slurm, job, run_folder)
    log = (run_folder / "err.txt").read_text()
    assert ended["JobState"] == "COMPLETED" and ended["Restarts"] == "1", log
    assert "asked to stop by a signal" in log and "resuming at step" in log
    assert result(run_folder)["steps"] == 60 * 21
    assert '"kind": "resume"' in metrics.read_text()


def test_a_task_of_an_array_is_requeued_alone(slurm: dict[str, str], run_folder: Path) -> None:
    """The last task to start is the one to signal.

    It has the number of the whole array as its SLURM_JOB_ID.
    """
    tasks = ("--array=0-1", "--ntasks-per-node=1")
    job = submit(
        slurm,
        run_folder,
        "--set",
        "train.epochs=60",
        "--set",
        "train.seed=%a",
        options=tasks,
        logs="-%A_%a",
    )
    signal_at(slurm, f"{job}_1", run_folder / "run" / "task-1" / "metrics.jsonl", 50)
    seeds = []
    for task, restarts in (0, "0"), (1, "1"):
        logs = f"-{job}_{task}"
        ended = wait(slurm, f"{job}_{task}", run_folder, logs)
        assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", restarts), (
            run_folder / f"err{logs}.txt"
        ).read_text()
        assert result(run_folder, logs)["steps"] == 60 * 21
        folder = run_folder / "run" / f"task-{task}"
        assert ('"kind": "resume"' in (folder / "metrics.jsonl").read_text()) == (task == 1)
        seeds.append(json.loads((folder / "config.json").read_text())["train"]["seed"])
    assert seeds == [0, 1] and sorted(path.name for path in (run_folder / "run").iterdir()) == [
        "task-0",
        "task-1",
    ]


@pytest.mark.parametrize(
    ("option", "used"), [("--cpus-per-task=2", 2), ("--cpus-per-task=1", 1), ("--exclusive", 2)]
)
def test_all_allotted_cores_are_used(
    slurm: dict[str, str], run_folder: Path, option: str, used: int
) -> None:
    # nothing that undoes mpirun's own binding
    env = {name: value for name, value in slurm.items() if "mapping_policy" not in name}
    job = submit(
        env, run_folder, "--set", "train.max_steps=2", options=("--ntasks-per-node=1", option)
    )
    ended, log = wait(env, job, run_folder), (run_folder / "err.txt").read_text()
    assert ended["JobState"] == "COMPLETED", log
    assert (
        f"{used} thread(s) each, on {used} of {used} allotted core(s)" in log
        and "note: a rank may use" not in log
    ), log


def test_srun_without_a_connection_is_refused(slurm: dict[str, str], run_folder: Path) -> None:
    """Each of its processes would train alone, all into one folder."""
    doctor = srun(slurm, "mpidl", "doctor")
    assert (
        doctor.returncode == 1 and "srun started 2 processes, but MPI (Open MPI" in doctor.stdout
    ), doctor.stdout
    assert doctor.stdout.count("mpirun -n 2 mpidl") == 1
    train = srun(slurm, "mpidl", "train", str(run_folder / "run.toml"))
    assert train.returncode == 1 and not (run_folder / "run").exists()
    assert (
        train.stderr.count("mpidl: error: srun started 2 processes") == 1
        and "mpirun -n 2 mpidl" in train.stderr
    ), train.stderr
    assert "Traceback" not in train.stderr


def test_what_the_refusal_offers_works(slurm: dict[str, str], run_folder: Path) -> None:
    apart = srun(slurm, "mpirun", "-n", "1", "mpidl", "evaluate", str(run_folder / "run"))
    assert apart.stderr.count("no checkpoint") == 2, (
        apart.stderr
    )  # two jobs of their own, each with its own message
    if "pmix" not in srun(slurm, "--mpi=list").stdout:
        pytest.skip("this SLURM has no PMIx")
    doctor = srun(slurm, "--mpi=pmix", "mpidl", "doctor")
    assert doctor.returncode == 0 and "SLURM job" in doctor.stdout, doctor.stdout
    train = srun(slurm, "--mpi=pmix", "mpidl", "train", str(run_folder / "run.toml"), "--json")
    assert json.loads(train.stdout.splitlines()[-1])["ranks"] == 2, train.stderr
