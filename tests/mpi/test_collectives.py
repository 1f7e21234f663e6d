"""Collectives over real MPI, on 1 to 4 ranks, and on groups of every size."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mpidl import collectives
from mpidl.collectives import Group, all_reduce
from mpidl.collectives.algorithms import ALL_REDUCE
from mpidl.collectives.schedule import block_range
from mpidl.errors import CollectiveError

pytestmark = pytest.mark.mpi
DTYPES = [np.float32, np.float64, np.int32, np.uint8, np.float16, ml_dtypes.bfloat16, np.complex64]


def draw(rank: int, length: int, dtype: Any) -> np.ndarray:
    return np.random.default_rng([rank, length]).integers(0, 9, length).astype(dtype)


def wanted(size: int, length: int, dtype: Any) -> np.ndarray:
    return sum(draw(rank, length, dtype).astype(np.complex128) for rank in range(size))


@pytest.mark.parametrize("algorithm", ["auto", *ALL_REDUCE])
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_reduce(context: Any, algorithm: str, dtype: Any) -> None:
    for length in (0, 1, 2, 7, 64, 1001, 100_003):
        for _ in range(2):
            buffer = draw(context.rank, length, dtype)
            all_reduce(buffer, comm=context.comm, algorithm=algorithm)
            np.testing.assert_array_equal(
                buffer.astype(np.complex128), wanted(context.size, length, dtype)
            )


@pytest.mark.parametrize("algorithm", ["auto", "ring", "rabenseifner"])
def test_large_messages(context: Any, algorithm: str) -> None:
    buffer = draw(
        context.rank, 3_000_001, np.float32
    )  # beyond the size from which ranks read each other's memory
    all_reduce(buffer, comm=context.comm, algorithm=algorithm)
    np.testing.assert_array_equal(buffer, wanted(context.size, 3_000_001, np.float32).real)


@pytest.mark.parametrize("op", ["product", "min", "max", "mean"])
@pytest.mark.parametrize("algorithm", ["auto", "ring", "native"])
def test_operations(context: Any, op: str, algorithm: str) -> None:
    functions = {"product": np.prod, "min": np.min, "max": np.max, "mean": np.mean}
    for length in (5, 30_001):
        parts = [draw(rank, length, np.float64) for rank in range(context.size)]
        buffer = parts[context.rank].copy()
        all_reduce(buffer, comm=context.comm, op=op, algorithm=algorithm)
        np.testing.assert_allclose(buffer, functions[op](parts, axis=0))


def test_not_a_number_survives_every_operation(context: Any) -> None:
    for op in ("sum", "min", "max", "product"):
        buffer = np.full(3, np.nan if context.rank == context.size - 1 else 1.0, np.float32)
        all_reduce(buffer, comm=context.comm, op=op)
        assert np.isnan(buffer).all(), op


@pytest.mark.parametrize("algorithm", ALL_REDUCE)
def test_all_reduce_in_groups(context: Any, algorithm: str) -> None:
    comm = context.comm.Split(context.rank % 2, context.rank)
    buffer = np.full(11, float(context.rank))
    all_reduce(buffer, comm=comm, algorithm=algorithm)
    assert (buffer == sum(range(context.rank % 2, context.size, 2))).all()
    comm.Free()


def test_floats_come_out_bit_equal_on_all_ranks_and_in_tree_order(context: Any) -> None:
    from mpidl.collectives.engine.reduction import tree_reduce

    parts = [
        np.random.default_rng(rank).standard_normal(20_001).astype(np.float32)
        for rank in range(context.size)
    ]
    for algorithm in ("auto", "rabenseifner", "doubling"):
        buffer = parts[context.rank].copy()
        all_reduce(buffer, comm=context.comm, algorithm=algorithm, exact=True)
        if context.size != 3:
            assert (
                buffer.tobytes() == tree_reduce([part.copy() for part in parts], "sum").tobytes()
            ), algorithm
        assert len(set(context.allgather_object(buffer.tobytes(), bytes))) == 1


def test_rooted_collectives(context: Any) -> None:
    group, size, rank = Group(context.comm, name="test"), context.size, context.rank
    for length in (1, 10, 1001, 200_000):
        parts = [draw(other, length, np.float32) for other in range(size)]
        low, high = block_range(rank, size, length)
        for root in range(size):
            buffer = parts[rank].copy()
            collectives.reduce(buffer, comm=group, root=root)
            if rank == root:
                np.testing.assert_array_equal(buffer, np.sum(parts, axis=0))
            buffer = parts[rank].copy()
            collectives.broadcast(buffer, comm=group, root=root)
            np.testing.assert_array_equal(buffer, parts[root])
            np.testing.assert_array_equal(
                collectives.scatter(parts[rank].copy(), comm=group, root=root),
                parts[root][low:high],
            )
            buffer = parts[rank].copy()
            collectives.gather(buffer, comm=group, root=root)
            if rank == root:
                whole = np.concatenate(
                    [
                        parts[other][slice(*block_range(other, size, length))]
                        for other in range(size)
                    ]
                )
                np.testing.assert_array_equal(buffer, whole)
    group.free()


def test_the_other_collectives(context: Any) -> None:
    group, size, rank = Group(context.comm, name="test"), context.size, context.rank
    for length in (1, 10, 1001, 200_000):
        parts = [draw(other, length, np.float32) for other in range(size)]
        low, high = block_range(rank, size, length)
        for algorithm in ("ring", "bruck", "auto"):
            buffer = np.zeros(length)
            buffer[low:high] = rank
            collectives.all_gather(buffer, comm=group, algorithm=algorithm)
            for other in range(size):
                assert (buffer[slice(*block_range(other, size, length))] == other).all()
        own = collectives.reduce_scatter(parts[rank].copy(), comm=group)
        np.testing.assert_array_equal(own, np.sum(parts, axis=0)[low:high])
    received = np.zeros(2 * size, np.int32)
    collectives.all_to_all(
        np.repeat(np.arange(size), 2).astype(np.int32) + 10 * rank, received, comm=group
    )
    np.testing.assert_array_equal(received, np.repeat(10 * np.arange(size) + rank, 2))
    collectives.barrier(comm=group)
    group.free()


def test_send_and_receive(context: Any) -> None:
    if context.size < 2:
        return
    for dtype in (np.float32, ml_dtypes.bfloat16):
        if context.rank == 0:
            collectives.send(np.arange(5).astype(dtype), 1, comm=context.comm)
            collectives.send(np.zeros(5, dtype), 1, comm=context.comm, tag=3)
        if context.rank == 1:
            buffer = np.zeros(5, dtype)
            collectives.recv(buffer, 0, comm=context.comm)
            np.testing.assert_array_equal(buffer.astype(int), np.arange(5))
            with pytest.raises(CollectiveError, match="expected"):
                collectives.recv(np.zeros(4, dtype), 0, comm=context.comm, tag=3)
            collectives.recv(buffer, 0, comm=context.comm, tag=3)


def test_device_memory_goes_through_the_host(context: Any) -> None:
    from tests.standin import fake_cupy

    fake_cupy.install()
    buffer = np.full(9, context.rank + 1.0, np.float32).view(fake_cupy.DeviceArray)
    all_reduce(buffer, comm=context.comm)
    np.testing.assert_array_equal(buffer.get(), np.full(9, sum(range(1, context.size + 1))))


@pytest.mark.parametrize("op", ["sum", "mean", "max"])
@pytest.mark.parametrize("aware", [False, True])
def test_large_device_arrays(
    context: Any, monkeypatch: pytest.MonkeyPatch, op: str, aware: bool
) -> None:
    from mpidl.comm import transport
    from tests.standin import fake_cupy

    fake_cupy.install()
    monkeypatch.setattr(transport, "CHUNK", 1 << 16)
    monkeypatch.setattr("mpidl.collectives.dispatch.CHUNK", 1 << 16)
    monkeypatch.setattr(transport.in_chunks, "__defaults__", (1 << 16,))
    group = Group(context.comm, name="device")
    group.gpu_aware = aware
    host = draw(context.rank, 100_003, np.float32)
    buffer = host.copy().view(fake_cupy.DeviceArray)
    if aware and op == "mean":
        group.free()
        return  # dividing on the device needs more of CuPy than the stand-in has
    all_reduce(buffer, comm=group, op=op)
    parts = [draw(rank, 100_003, np.float32) for rank in range(context.size)]
    wanted = {"sum": np.sum, "mean": np.mean, "max": np.max}[op](parts, axis=0)
    np.testing.assert_allclose(buffer.get(), wanted, rtol=1e-6)
    group.free()


def test_wrong_buffers_are_refused(context: Any) -> None:
    with pytest.raises(CollectiveError, match="contiguous"):
        all_reduce(np.zeros((4, 4))[:, 0], comm=context.comm)
    with pytest.raises(CollectiveError, match="cannot send"):
        all_reduce(np.zeros(4, "datetime64[s]"), comm=context.comm)
    with pytest.raises(CollectiveError, match="unknown"):
        all_reduce(np.zeros(4), comm=context.comm, algorithm="rnig")
    with pytest.raises(CollectiveError, match="unknown operation"):
        all_reduce(np.zeros(4), comm=context.comm, op="avg")
    with pytest.raises(CollectiveError, match="complex"):
        all_reduce(np.zeros(4, "c8"), comm=context.comm, op="max")
    frozen = np.zeros(4)
    frozen.flags.writeable = False
    for algorithm in ("auto", "ring"):
        with pytest.raises(CollectiveError, match="read-only"):
            all_reduce(frozen, comm=context.comm, algorithm=algorithm)


def test_ranks_that_disagree_are_told_who_does_what(context: Any) -> None:
    if context.size < 2:
        return
    odd = context.rank == context.size - 1
    with pytest.raises(
        CollectiveError, match=rf"rank {context.size - 1}: .* of 5 x float32"
    ) as caught:
        all_reduce(np.zeros(5 if odd else 4, np.float32), comm=context.comm)
    assert caught.value.agreed
    with pytest.raises(CollectiveError, match=rf"rank {context.size - 1}: .* of 4 x float64"):
        all_reduce(np.zeros(4, np.float64 if odd else np.float32), comm=context.comm)
    with pytest.raises(CollectiveError, match="bucket 7"):
        all_reduce(
            np.zeros(5 if odd else 4),
            comm=context.comm,
            algorithm="native",
            name="bucket 7" if odd else "bucket 6",
        )
    for algorithm in ("auto", "hierarchical"):  # the same lengths, but another bucket
        with pytest.raises(CollectiveError, match="bucket 9"):
            all_reduce(
                np.zeros(4),
                comm=context.comm,
                algorithm=algorithm,
                name="bucket 9" if odd else "bucket 8",
            )
    buffer = np.ones(4, np.float32)
    all_reduce(buffer, comm=context.comm)  # and the group still works
    assert (buffer == context.size).all()


@pytest.mark.parametrize("algorithm", ["auto", "ring", "native"])
def test_overflow_is_an_error_on_every_rank(context: Any, algorithm: str) -> None:
    if context.size < 2:
        return
    with pytest.raises(CollectiveError, match=r"float16 overflow.*element 2; rank 0 .* 60000"):
        all_reduce(
            np.array([0, 1, 60000, 0], np.float16),
            comm=context.comm,
            algorithm=algorithm,
            name="bucket 3",
        )
    buffer = np.array([0, 1, 60000, 0], np.float16)
    all_reduce(buffer, comm=context.comm, algorithm=algorithm, op="mean")
    np.testing.assert_allclose(buffer, [0, 1, 60000, 0], rtol=1e-3)
    infinite = np.array([np.inf if context.rank == 0 else 1.0], np.float16)
    all_reduce(
        infinite, comm=context.comm, algorithm=algorithm
    )  # was infinite before: passes through
    assert np.isinf(infinite).all()
    with pytest.raises(CollectiveError, match="could overflow: rank 1"):
        all_reduce(
            np.full(3, 2**31 - 2 + context.rank % 2, np.int32),
            comm=context.comm,
            algorithm=algorithm,
            op="mean",
        )
    small = np.array([7, -5], np.int32) + context.rank
    all_reduce(small, comm=context.comm, algorithm=algorithm, op="mean")
    np.testing.assert_array_equal(small, np.array([7, -5]) + (context.size - 1) // 2)
