"""Cores are divided among the ranks of a node."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mpidl.comm import binding
from mpidl.comm.binding import Cores, divide_cores


@pytest.mark.parametrize(
    ("allowed", "wanted"),
    [
        ([(0, 1, 2, 3)], [(0, 1, 2, 3)]),
        ([(0, 1, 2, 3)] * 2, [(0, 1), (2, 3)]),
        ([(0, 1, 2)] * 2, [(0,), (1, 2)]),
        ([(0, 1)] * 3, [(0,), (1,), (0,)]),
        ([(0, 1), (2, 3)], [(0, 1), (2, 3)]),
        ([(0, 1), (2, 3), (0, 1), (2, 3)], [(0,), (2,), (1,), (3,)]),
    ],
)
def test_shares(allowed: list[tuple[int, ...]], wanted: list[tuple[int, ...]]) -> None:
    assert [divide_cores(rank, allowed) for rank in range(len(allowed))] == wanted


def test_omp_num_threads_of_the_user_wins() -> None:
    code = "from mpidl.comm import binding as b; print(b.bind(0, [b.allowed_cores()])[1])"
    for value in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"OMP_NUM_THREADS": value},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == value


BIND = """
import os, numpy
from mpidl.comm import binding
numpy.ones((300, 300)) @ numpy.ones((300, 300))  # the threads of the BLAS exist
allowed = [binding.allowed_cores()] * int(os.environ["RANKS"])
cores, threads = binding.bind(int(os.environ["RANK"]), allowed)
places = [sorted(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")]
print(cores.used, cores.allotted, threads, len(places), sorted({len(place) for place in places}))
"""


def bound(rank: int, ranks: int, **variables: str) -> list[str]:
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM", "OMPI_COMM", "OMP_", "PMI"))
    }
    given = {"RANK": str(rank), "RANKS": str(ranks), "OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", BIND],
        env=clean | given | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split(maxsplit=4)


two_cores = pytest.mark.skipif(len(binding.allowed_cores()) < 2, reason="needs two cores")


@two_cores
def test_all_threads_of_a_rank_are_bound_to_its_share() -> None:
    half, rest = (
        len(binding.allowed_cores()) // 2,
        len(binding.allowed_cores()) - len(binding.allowed_cores()) // 2,
    )
    for rank, share in (0, half), (1, rest):
        used, _, threads, count, places = bound(rank, 2)
        assert int(count) > 1, "the BLAS has no threads of its own here: the test shows nothing"
        assert (used, threads, places.strip()) == (str(share), str(share), f"[{share}]")


@two_cores
def test_no_more_than_slurm_allots_and_not_on_cores_of_other_jobs() -> None:
    every = len(binding.allowed_cores())
    assert bound(0, 1, SLURM_CPUS_PER_TASK="1", SLURM_CPUS_ON_NODE=str(every))[:3] == [
        "1",
        "1",
        "1",
    ]
    assert (
        bound(0, 1, SLURM_CPUS_PER_TASK="1")[4].strip() == f"[{every}]"
    )  # SLURM did not confine the job: nor do we
    assert bound(0, 1, SLURM_CPUS_ON_NODE=str(every))[:3] == [str(every)] * 3
    assert bound(0, 1, SLURM_CPUS_ON_NODE=str(every), SLURM_CPUS_PER_TASK=str(every + 1))[:2] == [
        str(every),
        str(every + 1),
    ]


@two_cores
def test_the_share_is_told_by_the_mask_of_the_launcher() -> None:
    """As under mpirun: the parent may use all cores; the child is bound to one."""
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n" + BIND
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")} | {
        "RANK": "0",
        "RANKS": "1",
    }
    for launched, wanted in (
        ({"OMPI_COMM_WORLD_RANK": "0"}, len(binding.allowed_cores())),
        ({}, 1),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=env | launched,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split()[:2] == ["1", str(wanted)]


def test_what_is_said_of_idle_cores() -> None:
    assert Cores(2, 2).problem() is None and Cores(3, 2).problem() is None
    error = Cores(1, 8).problem()
    assert (
        error is not None and "1 of the 8 cores" in error.what and "--bind-to none" in error.remedy
    )


def test_neighbors_on_a_socket_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sockets of two cores of two threads, numbered as Linux does: first all first threads."""
    places = {core: (core // 2 % 2, core % 2, core) for core in range(8)}
    monkeypatch.setattr(binding, "_place", places.__getitem__)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    allowed = binding.allowed_cores()
    assert allowed == (0, 4, 1, 5, 2, 6, 3, 7)
    assert [divide_cores(rank, [allowed] * 2) for rank in range(2)] == [(0, 4, 1, 5), (2, 6, 3, 7)]
