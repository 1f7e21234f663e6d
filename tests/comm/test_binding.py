"""Cores are divided among the ranks of a node."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mpidl.comm.binding import share_of


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
    assert [share_of(rank, allowed) for rank in range(len(allowed))] == wanted


def test_omp_num_threads_of_the_user_wins() -> None:
    code = "from mpidl.comm import binding as b; print(b.bind(0, [b.allowed_cores()]))"
    for value in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"OMP_NUM_THREADS": value},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == value
