"""No message holds more elements than MPI can count, as checked by a communicator that refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mpidl.distributed as dist
from mpidl import collectives
from mpidl.collectives import Group
from mpidl.collectives.algorithms import ALL_REDUCE
from mpidl.collectives.schedule import block_range
from mpidl.comm import mpi, transport
from mpidl.compression import create

pytestmark = pytest.mark.mpi
MOST, LENGTH = 70_000, 300_007
METHODS = (
    "Send",
    "Recv",
    "Isend",
    "Irecv",
    "Sendrecv",
    "Bcast",
    "Allreduce",
    "Allgather",
    "Gatherv",
    "Reduce",
)


def refusing(comm: Any) -> Any:
    """The same communicator, as an MPI library with very short integers would have it."""

    def limited(method: Any) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            for buffer in args:
                assert not isinstance(buffer, np.ndarray) or buffer.size <= MOST, (
                    f"{buffer.size} elements in a message"
                )
            return method(self, *args, **kwargs)

        return call

    base = mpi.load().Intracomm
    return type("Refusing", (base,), {name: limited(getattr(base, name)) for name in METHODS})(comm)


@pytest.fixture
def group(context: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Group]:
    monkeypatch.setattr(transport, "MOST", MOST)
    made = Group(context.comm, name="counts")
    made.fast, made.shares = None, False  # by messages, as between nodes
    whole, made.comm = made.comm, refusing(made.comm)
    yield made
    made.comm = whole
    made.free()


def test_the_limit_is_one_that_fits_32_bits() -> None:
    assert transport.MOST < 2**31


@pytest.mark.parametrize("algorithm", ALL_REDUCE)
@pytest.mark.parametrize("dtype", [np.uint8, np.float64, np.float16, ml_dtypes.bfloat16])
def test_all_reduce(context: Any, group: Group, algorithm: str, dtype: Any) -> None:
    buffer = (np.arange(LENGTH) % 7 + context.rank).astype(dtype)
    collectives.all_reduce(buffer, comm=group, algorithm=algorithm)
    wanted = sum((np.arange(LENGTH) % 7 + rank).astype(np.float64) for rank in range(context.size))
    np.testing.assert_array_equal(buffer.astype(np.float64), wanted)


def test_collectives_of_blocks(context: Any, group: Group) -> None:
    size, rank = context.size, context.rank
    parts = [
        np.random.default_rng(other).integers(0, 9, LENGTH).astype(np.int16)
        for other in range(size)
    ]
    low, high = block_range(rank, size, LENGTH)
    buffer = parts[rank].copy()
    collectives.broadcast(buffer, comm=group, root=size - 1)
    np.testing.assert_array_equal(buffer, parts[-1])
    buffer = parts[rank].copy()
    collectives.reduce(buffer, comm=group)
    if rank == 0:
        np.testing.assert_array_equal(buffer, np.sum(parts, axis=0))
    np.testing.assert_array_equal(
        collectives.scatter(parts[rank].copy(), comm=group), parts[0][low:high]
    )
    np.testing.assert_array_equal(
        collectives.reduce_scatter(parts[rank].copy(), comm=group), np.sum(parts, axis=0)[low:high]
    )
    for algorithm in ("ring", "bruck"):
        buffer = np.zeros(LENGTH)
        buffer[low:high] = rank
        collectives.all_gather(buffer, comm=group, algorithm=algorithm)
        assert all(
            (buffer[slice(*block_range(other, size, LENGTH))] == other).all()
            for other in range(size)
        )
    buffer = np.zeros(LENGTH)
    buffer[low:high] = rank
    collectives.gather(buffer, comm=group)
    if rank == 0:
        assert all(
            (buffer[slice(*block_range(other, size, LENGTH))] == other).all()
            for other in range(size)
        )


def test_messages_between_pairs(context: Any, group: Group) -> None:
    size, rank = context.size, context.rank
    sent = np.random.default_rng(0).integers(0, 9, LENGTH).astype(np.int16)
    received = np.zeros(size * 100_000, np.int32)
    collectives.all_to_all(
        np.repeat(np.arange(size), 100_000).astype(np.int32) + 10 * rank, received, comm=group
    )
    np.testing.assert_array_equal(received, np.repeat(10 * np.arange(size) + rank, 100_000))
    if size > 1:
        if rank == 0:
            collectives.send(sent, 1, comm=group)
        if rank == 1:
            collectives.recv(buffer := np.zeros(LENGTH, np.int16), 0, comm=group)
            np.testing.assert_array_equal(buffer, sent)


@pytest.mark.parametrize("name", ["fp16", "int8", "sign", "topk", "powersgd"])
def test_compressed(context: Any, group: Group, name: str) -> None:
    options = {"ratio": 0.5} if name == "topk" else {}
    compressor, total = create(name, **options), np.zeros(LENGTH)
    given = np.random.default_rng(context.rank).standard_normal(LENGTH).astype(np.float32)
    for _ in range(8):
        values = given.copy()
        compressor.reduce(values, group, "bucket")
        total += values
    if name in ("fp16", "int8", "topk"):
        wanted = sum(
            np.random.default_rng(rank).standard_normal(LENGTH) for rank in range(context.size)
        )
        assert np.linalg.norm(total / 8 - wanted) < 0.2 * np.linalg.norm(wanted)


def test_objects(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MOST", MOST)
    dist.init()
    members = dist.groups.world().group()
    whole, members.comm = members.comm, refusing(members.comm)
    value = np.arange(LENGTH) + context.rank
    np.testing.assert_array_equal(
        dist.broadcast_object(value, context.size - 1), np.arange(LENGTH) + context.size - 1
    )
    for rank, got in enumerate(dist.all_gather_object(value)):
        np.testing.assert_array_equal(got, np.arange(LENGTH) + rank)
    members.comm = whole
    dist.shutdown()
