"""Whole jobs as a user runs them: `mpirun -n N mpidl ...`, always with a time limit."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.jobs.pool import Pools

LIMIT = 100


@dataclass
class Job:
    """A finished job."""

    status: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """What --json printed."""
        lines = [line for line in self.out.splitlines() if line.startswith("{")]
        assert lines, f"no JSON on stdout; stderr:\n{self.err}"
        found: dict[str, Any] = json.loads(lines[-1])
        return found


def environment(**extra: str) -> dict[str, str]:
    """The environment of a job: what the Makefile passes in MPI_ENV, or the same without it."""
    given = os.environ.get("MPI_ENV") or (
        "OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_btl=^ofi "
        "PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe "
        + ("OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1" if os.geteuid() == 0 else "")
    )
    bin_folder = str(Path(sys.executable).parent)
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("OMPI_COMM", "PMIX", "MPIDL_BACKEND", "PYTEST_"))
    }
    return (
        clean
        | dict(item.split("=", 1) for item in shlex.split(given))
        | {"PATH": f"{bin_folder}:{clean['PATH']}"}
        | extra
    )


def start(ranks: int, *args: str, **extra: str) -> subprocess.Popen[str]:
    """Start a job and return at once."""
    command = ["timeout", "--kill-after=10", str(LIMIT), "mpirun", "-n", str(ranks), *args]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**extra),
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> Job:
    """Wait for a started job; a hang is an error."""
    out, err = process.communicate(timeout=LIMIT + 20)
    assert process.returncode != 124, f"the job hung\n{out}\n{err}"
    return Job(process.returncode, out, err)


POOLS = Pools()


def mpidl(ranks: int, *args: str, **extra: str) -> Job:
    """Run `mpidl ARGS` on ranks of a pool (tests/jobs/pool.py).

    New ranks are started where the environment is another one, and for each command with
    MPIDL_TEST_POOL=0 (make test-fresh).
    """
    done = (
        None
        if os.environ.get("MPIDL_TEST_POOL") == "0"
        else POOLS.run(ranks, args, environment(**extra))
    )
    return finish(start(ranks, "mpidl", *args, **extra)) if done is None else Job(*done)
