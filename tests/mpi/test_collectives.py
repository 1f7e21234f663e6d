"""Collectives over real MPI, on 1 to 4 ranks, and on groups of every size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpidl.collectives import all_reduce
from mpidl.collectives.api import ALL_REDUCE
from mpidl.errors import CollectiveError

pytestmark = pytest.mark.mpi


def draw(rank: int, length: int, dtype: Any) -> np.ndarray:
    return np.random.default_rng([rank, length]).integers(-99, 99, length).astype(dtype)


@pytest.mark.parametrize("algorithm", sorted(ALL_REDUCE))
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_all_reduce(context: Any, algorithm: str, dtype: Any) -> None:
    for length in (0, 1, 2, 7, 64, 1001, 100_003):
        wanted = sum(draw(rank, length, dtype).astype(np.float64) for rank in range(context.size))
        for _ in range(2):
            buffer = draw(context.rank, length, dtype)
            all_reduce(buffer, comm=context.comm, algorithm=algorithm)
            np.testing.assert_array_equal(buffer, wanted)


@pytest.mark.parametrize("algorithm", sorted(ALL_REDUCE))
def test_all_reduce_in_groups(context: Any, algorithm: str) -> None:
    group = context.comm.Split(context.rank % 2, context.rank)
    buffer = np.full(11, float(context.rank))
    all_reduce(buffer, comm=group, algorithm=algorithm)
    assert (buffer == sum(range(context.rank % 2, context.size, 2))).all()
    group.Free()


def test_floats_come_out_bit_equal_on_all_ranks(context: Any) -> None:
    buffer = np.random.default_rng(context.rank).standard_normal(1001).astype(np.float32)
    all_reduce(buffer, comm=context.comm)
    assert len(set(context.gather(buffer.tobytes()))) == 1


def test_device_memory_goes_through_the_host(context: Any) -> None:
    from tests.standin import fake_cupy

    fake_cupy.install()
    buffer = np.full(9, context.rank + 1.0, np.float32).view(fake_cupy.DeviceArray)
    all_reduce(buffer, comm=context.comm)
    np.testing.assert_array_equal(buffer.get(), np.full(9, sum(range(1, context.size + 1))))


def test_wrong_buffers_are_refused(context: Any) -> None:
    with pytest.raises(CollectiveError, match="contiguous"):
        all_reduce(np.zeros((4, 4))[:, 0], comm=context.comm)
    with pytest.raises(CollectiveError, match="float16"):
        all_reduce(np.zeros(4, np.float16), comm=context.comm)
    with pytest.raises(CollectiveError, match="unknown"):
        all_reduce(np.zeros(4), comm=context.comm, algorithm="rnig")
    frozen = np.zeros(4)
    frozen.flags.writeable = False
    if context.size > 1:
        with pytest.raises(CollectiveError, match="read-only"):
            all_reduce(frozen, comm=context.comm)
