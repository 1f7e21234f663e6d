"""All-reduce over real MPI on 5 to 9 ranks (1 to 4 are in tests/mpi), any length."""

from __future__ import annotations

import pytest

from tests.jobs.helpers import finish, start

CODE = """
import numpy as np
from mpidl.collectives import all_reduce
from mpidl.collectives.algorithms import ALL_REDUCE
from mpidl.comm.context import init
context = init()
for algorithm in (*ALL_REDUCE, "auto"):
    for dtype in (np.float32, np.float64, np.int64):
        for length in (0, 1, 2, 7, 8, 9, 64, 1001):
            parts = [
                np.random.default_rng([rank, length]).integers(-99, 99, length).astype(dtype)
                for rank in range(context.size)
            ]
            buffer = parts[context.rank].copy()
            all_reduce(buffer, comm=context.comm, algorithm=algorithm)
            assert np.array_equal(buffer, sum(parts)), (algorithm, dtype, length)
if context.is_root:
    print("exact on", context.size)
"""


@pytest.mark.parametrize("ranks", [5, 6, 7, 8, 9])
def test_all_reduce_is_exact(ranks: int) -> None:
    job = finish(start(ranks, "python", "-c", CODE))
    assert job.status == 0 and f"exact on {ranks}" in job.out, job.err
