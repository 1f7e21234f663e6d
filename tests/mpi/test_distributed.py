"""The API that users of other frameworks know."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mpidl.distributed as dist
from mpidl.errors import CollectiveError

pytestmark = pytest.mark.mpi


@pytest.fixture(scope="module", autouse=True)
def world() -> Any:
    dist.init(joinable=True)
    yield
    dist.shutdown()


def test_who_is_who(context: Any) -> None:
    assert (dist.rank(), dist.size()) == (context.rank, context.size)
    assert 0 <= dist.local_rank() < dist.local_size() <= dist.size()
    assert dist.is_initialized()


def test_arrays_of_any_shape(context: Any) -> None:
    size, rank = dist.size(), dist.rank()
    x = np.full((2, 3), rank, np.float32)
    assert dist.all_reduce(x) is x and (x == sum(range(size))).all()
    x = np.full((2, 3), rank, np.float32)
    dist.all_reduce(x, op=dist.MEAN)
    np.testing.assert_allclose(x, (size - 1) / 2)
    stacked = dist.all_gather(np.full((2, 2), rank))
    assert stacked.shape == (size, 2, 2) and (stacked == np.arange(size)[:, None, None]).all()
    own = dist.reduce_scatter(np.arange(2 * size * 3, dtype=float).reshape(2 * size, 3))
    np.testing.assert_array_equal(
        own, size * np.arange(2 * size * 3).reshape(2 * size, 3)[2 * rank : 2 * rank + 2]
    )
    np.testing.assert_array_equal(
        dist.alltoall(np.arange(size) + 10 * rank), 10 * np.arange(size) + rank
    )
    for root in range(size):
        y = np.full(4, rank)
        dist.reduce(y, root)
        assert (y == (sum(range(size)) if rank == root else rank)).all()
        assert (dist.broadcast(np.full(3, rank), root) == root).all()
        given = np.arange(size * 2).reshape(size, 2) + root if rank == root else None
        np.testing.assert_array_equal(
            dist.scatter(given, root), [[2 * rank + root, 2 * rank + 1 + root]]
        )
        gathered = dist.gather(np.array([rank, -rank]), root)
        assert (gathered is None) == (rank != root)
        if gathered is not None:
            np.testing.assert_array_equal(gathered, [[other, -other] for other in range(size)])
    dist.barrier()


def test_handles_complete_in_order(context: Any) -> None:
    group = dist.new_group(range(dist.size()))
    arrays = [np.full(1000 * (index + 1), dist.rank() + index, np.float32) for index in range(5)]
    handles = [
        dist.all_reduce(array, group=group, async_op=True, name=f"bucket {index}")
        for index, array in enumerate(arrays)
    ]
    here = np.ones(7)
    dist.all_reduce(here)  # synchronous ones go on meanwhile
    for index, handle in enumerate(handles):
        assert dist.synchronize(handle) is arrays[index] and dist.poll(handle)
        assert (arrays[index] == sum(rank + index for rank in range(dist.size()))).all()
    assert (here == dist.size()).all()
    failing = dist.all_reduce(np.ones(3), op="nonsense", group=group, async_op=True)
    with pytest.raises(CollectiveError, match="unknown operation"):
        failing.wait()
    handle = dist.grouped_all_reduce(
        [np.ones(3), np.ones((2, 2), np.float32), np.ones(1)], group=group, async_op=True
    )
    assert all((array == dist.size()).all() for array in handle.wait())
    both = dist.grouped_all_gather(
        [np.full(2, dist.rank()), np.full((1, 2), -dist.rank())], group=group
    )
    assert both[1].shape == (dist.size(), 1, 2)
    group.free()


def test_process_sets(context: Any) -> None:
    even = dist.add_process_set(range(0, dist.size(), 2), name="even")
    assert even.included() == (dist.rank() % 2 == 0)
    x = np.ones(5)
    if even.included():
        dist.all_reduce(x, group=even)
        assert (x == even.size).all() and dist.rank(even) == dist.rank() // 2
    else:
        with pytest.raises(CollectiveError, match="not in group 'even'"):
            dist.all_reduce(x, group=even)
    with pytest.raises(CollectiveError, match="cannot make a group"):
        dist.new_group([0, dist.size()])
    dist.barrier()
    even.free()


def test_objects_and_parameters(context: Any) -> None:
    assert dist.broadcast_object({"a": dist.rank()}, 0) == {"a": 0}
    assert dist.all_gather_object(dist.rank() ** 2) == [rank**2 for rank in range(dist.size())]
    parameters = {"w": np.full((2, 2), float(dist.rank())), "b": np.full(3, dist.rank())}
    dist.broadcast_parameters(parameters, root=dist.size() - 1)
    assert all((array == dist.size() - 1).all() for array in parameters.values())
    if dist.size() > 1:
        with pytest.raises(CollectiveError, match="w"):
            dist.broadcast_parameters({"w": np.zeros(3 + (dist.rank() == 1))})


@pytest.mark.parametrize("op", ["sum", "mean", "max", "product"])
def test_ranks_with_less_data_join(context: Any, op: str) -> None:
    size, rank = dist.size(), dist.rank()
    functions = {"sum": np.sum, "mean": np.mean, "max": np.max, "product": np.prod}
    for step in range(2 * rank + 1):  # rank r has 2 r + 1 batches
        x = np.full(6, rank + 2.0)
        dist.all_reduce(x, op=op)
        active = [other + 2.0 for other in range(size) if step < 2 * other + 1]
        np.testing.assert_allclose(x, functions[op](active))
    assert dist.join() == size - 1


def test_send_and_receive(context: Any) -> None:
    if dist.size() > 1 and dist.rank() == 0:
        dist.send(np.arange(6).reshape(2, 3), 1, tag=4)
    if dist.rank() == 1:
        np.testing.assert_array_equal(
            dist.recv(np.zeros((2, 3), np.int64), 0, tag=4), np.arange(6).reshape(2, 3)
        )


def test_wrong_shapes_are_refused(context: Any) -> None:
    with pytest.raises(CollectiveError, match="not contiguous"):
        dist.all_reduce(np.ones((4, 4)).T[1:])
    if dist.size() > 1:
        with pytest.raises(CollectiveError, match="equal blocks"):
            dist.reduce_scatter(np.ones(dist.size() + 1))
