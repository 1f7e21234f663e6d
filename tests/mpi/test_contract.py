"""What collectives refuse, on all ranks: wrong arguments, and ranks that disagree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mpidl.distributed as dist
from mpidl import collectives
from mpidl.collectives import Group
from mpidl.collectives.algorithms import ALL_REDUCE
from mpidl.errors import CollectiveError

pytestmark = pytest.mark.mpi
Call = Callable[[Any], Any]


@pytest.fixture(scope="module", autouse=True)
def world() -> Iterator[None]:
    dist.init()
    yield
    dist.shutdown()


@pytest.fixture(params=["one node", "by messages"])
def group(context: Any, request: pytest.FixtureRequest) -> Iterator[Group]:
    """With shared memory, and without any, as between nodes."""
    made = Group(context.comm, name="contract")
    if request.param == "by messages":
        made.fast, made.shares = None, False
    yield made
    made.free()


def on_arrays(comm: Any) -> dict[str, Call]:
    """Every public function that takes an array, of an array."""
    other = (dist.rank() + 1) % dist.size()
    return {
        "collectives.all_reduce": lambda x: collectives.all_reduce(x, comm=comm),
        "collectives.all_reduce, ring": lambda x: collectives.all_reduce(
            x, comm=comm, algorithm="ring"
        ),
        "collectives.reduce": lambda x: collectives.reduce(x, comm=comm),
        "collectives.broadcast": lambda x: collectives.broadcast(x, comm=comm),
        "collectives.gather": lambda x: collectives.gather(x, comm=comm),
        "collectives.scatter": lambda x: collectives.scatter(x, comm=comm),
        "collectives.reduce_scatter": lambda x: collectives.reduce_scatter(x, comm=comm),
        "collectives.all_gather": lambda x: collectives.all_gather(x, comm=comm),
        "collectives.all_to_all": lambda x: collectives.all_to_all(
            x, np.zeros(dist.size()), comm=comm
        ),
        "collectives.all_to_all, into": lambda x: collectives.all_to_all(
            np.zeros(dist.size()), x, comm=comm
        ),
        "collectives.send": lambda x: collectives.send(x, other, comm=comm),
        "collectives.recv": lambda x: collectives.recv(x, other, comm=comm),
        "collectives.run_rounds": lambda x: collectives.run_rounds([], x, comm=comm, what="test"),
        "all_reduce": dist.all_reduce,
        "all_reduce, asynchronous": lambda x: dist.all_reduce(x, async_op=True).wait(),
        "grouped_all_reduce": lambda x: dist.grouped_all_reduce([np.zeros(2), x]),
        "reduce": dist.reduce,
        "broadcast": dist.broadcast,
        "all_gather": dist.all_gather,
        "grouped_all_gather": lambda x: dist.grouped_all_gather([np.zeros(2), x]),
        "reduce_scatter": dist.reduce_scatter,
        "scatter": dist.scatter,
        "gather": dist.gather,
        "alltoall": dist.alltoall,
        "send": lambda x: dist.send(x, other),
        "recv": lambda x: dist.recv(x, other),
        "broadcast_parameters": lambda x: dist.broadcast_parameters({"w": x}),
        "broadcast_optimizer_state": lambda x: dist.broadcast_optimizer_state({"w": x}),
    }


def test_what_is_no_array_of_numbers_is_refused(context: Any) -> None:
    swapped = np.arange(4 * dist.size()).astype(np.dtype("f4").newbyteorder())
    wrong: dict[str, Any] = {
        "a list": [1.0, 2.0],
        "a number": 3.0,
        "a NumPy number": np.float32(3),
        "None": None,
        "objects": np.array([None] * dist.size(), object),
        "text": np.array(["a"] * dist.size()),
        "truth values": np.zeros(dist.size(), bool),
        "another byte order": swapped,
        "every second": np.zeros(4 * dist.size())[::2],
    }
    for what, call in on_arrays(context.comm).items():
        for kind, value in wrong.items():
            if what in ("broadcast_parameters", "broadcast_optimizer_state") and value is None:
                continue
            with pytest.raises(CollectiveError) as caught:
                call(value)
            assert caught.value.remedy, (what, kind)
    collectives.barrier(comm=context.comm)


def test_another_byte_order_is_never_summed(context: Any, group: Group) -> None:
    x = np.array([1, 2, 3], ">f4")
    for algorithm in ("auto", *ALL_REDUCE):
        with pytest.raises(CollectiveError, match="byte order"):
            collectives.all_reduce(x, comm=group, algorithm=algorithm)
    np.testing.assert_array_equal(x, [1, 2, 3])


def test_wrong_ranks_and_tags_are_refused(context: Any) -> None:
    x, size, comm = np.zeros(2 * dist.size()), dist.size(), context.comm
    for root in (-1, size, None, "0", 0.5):
        for function in (
            collectives.reduce,
            collectives.broadcast,
            collectives.gather,
            collectives.scatter,
        ):
            with pytest.raises(CollectiveError, match="choose 0 to"):
                function(x, comm=comm, root=root)
        others = (dist.reduce, dist.broadcast, dist.scatter, dist.gather, dist.broadcast_object)
        for function in (*others, lambda x, root: dist.broadcast_parameters({"w": x}, root)):
            with pytest.raises(CollectiveError, match="choose 0 to"):
                function(x, root)
    for to in (-1, size, None, dist.rank()):
        for function in (collectives.send, collectives.recv):
            with pytest.raises(CollectiveError):
                function(x, to, comm=comm)
    for tag in (-1, 2**31 - 1, None, "1", 1.5):
        for function in (dist.send, dist.recv):
            with pytest.raises(CollectiveError, match=r"tag|this rank itself"):
                function(x, (dist.rank() + 1) % size, tag=tag)


def test_wrong_operations_groups_and_handles_are_refused(context: Any) -> None:
    x, size, comm = np.zeros(2 * dist.size()), dist.size(), context.comm
    for op in (None, ["sum"], "avg", np.add):
        for function in (collectives.all_reduce, collectives.reduce, collectives.reduce_scatter):
            with pytest.raises(CollectiveError, match="unknown operation"):
                function(x, comm=comm, op=op)
    for members in (None, 3, [], [0, 0], [size], [-1], ["0"], [0.5]):
        with pytest.raises(CollectiveError, match="cannot make a group"):
            dist.new_group(members)
    for given in (None, 3, np.zeros(3)):
        with pytest.raises(CollectiveError, match="needs a handle"):
            dist.synchronize(given)
        with pytest.raises(CollectiveError, match="needs a list"):
            dist.grouped_all_reduce(given)
        with pytest.raises(CollectiveError, match="communicator"):
            collectives.all_reduce(x, comm=given)
    with pytest.raises(CollectiveError, match="group is a Group"):
        dist.all_reduce(x, group=collectives.get_group(comm))
    with pytest.raises(CollectiveError, match="cannot broadcast the parameters"):
        dist.broadcast_parameters(None)
    freed = dist.new_group(range(size))
    freed.free()
    with pytest.raises(CollectiveError, match="freed"):
        dist.all_reduce(x, group=freed)


def test_an_array_without_axes_is_an_array(context: Any) -> None:
    x = np.array(1.0)
    dist.all_reduce(x)
    assert x == dist.size()
    assert dist.all_gather(np.array(dist.rank())).tolist() == list(range(dist.size()))
    dist.broadcast(x, dist.size() - 1)
    with pytest.raises(CollectiveError, match="equal blocks"):
        dist.scatter(x)


def test_what_only_the_root_brings_is_refused_on_all_ranks(context: Any) -> None:
    for value in (
        None,
        [1],
        np.zeros((dist.size() + 1, 2)) if dist.size() > 1 else np.array(1.0),
        np.zeros(3, ">i4"),
    ):
        with pytest.raises(CollectiveError) as caught:
            dist.scatter(value if dist.rank() == 0 else None)
        assert caught.value.agreed
    with pytest.raises(CollectiveError, match=r"rank 0: .*pickled"):
        dist.broadcast_object(lambda: 0)
    last = dist.rank() == dist.size() - 1
    with pytest.raises(CollectiveError, match=rf"rank {dist.size() - 1}: .*pickled"):
        dist.all_gather_object((lambda: 0) if last else 3)
    with pytest.raises(CollectiveError, match="w"):
        dist.broadcast_parameters({"w": [1] if last else np.zeros(3), "v": np.zeros(2)})
    assert dist.all_gather_object(dist.rank()) == list(range(dist.size()))


def test_ranks_that_want_another_operation_are_told(context: Any, group: Group) -> None:
    if context.size < 2:
        return
    group.guard = "on" if group.fast is None else "auto"
    for one, other in (("sum", "mean"), ("max", "min"), ("mean", "sum")):
        for length in (3, 100_000, 3_000_000):
            x = np.ones(length, np.float32)
            with pytest.raises(
                CollectiveError,
                match=rf"rank 0: all_reduce \({one}\).*rank 1: all_reduce \({other}\)",
            ):
                collectives.all_reduce(x, comm=group, op=one if context.rank == 0 else other)
            assert (x == 1).all()
    x = np.ones(5, np.int32)
    with pytest.raises(CollectiveError, match=r"all_reduce \(mean\)"):
        collectives.all_reduce(x, comm=group, op="mean" if context.rank == 0 else "sum")
    x = np.ones(4)
    collectives.all_reduce(x, comm=group)
    assert (x == context.size).all()


@pytest.mark.parametrize("what", ["reduce", "broadcast", "gather", "scatter"])
def test_ranks_with_another_root_are_told(context: Any, group: Group, what: str) -> None:
    if context.size < 2:
        return
    mine = int(context.rank == context.size - 1)
    for length in (context.size, 100_000):
        with pytest.raises(
            CollectiveError,
            match=rf"rank 0: {what} \(sum, root 0\).*rank {context.size - 1}: .*root 1",
        ):
            getattr(collectives, what)(np.ones(length), comm=group, root=mine)
        with pytest.raises(CollectiveError, match="root 1"):
            getattr(dist, what)(np.ones(context.size * 3), mine)
    with pytest.raises(CollectiveError, match="root 1"):
        dist.broadcast_object(3, mine)
    with pytest.raises(CollectiveError, match=r"reduce \(mean, root 0\)"):
        collectives.reduce(np.ones(3), comm=group, op="mean" if mine else "sum")
    with pytest.raises(CollectiveError, match="broadcast"):  # another collective altogether
        if mine:
            collectives.broadcast(np.ones(3), comm=group)
        else:
            collectives.reduce(np.ones(3), comm=group)
    with pytest.raises(CollectiveError, match="new_group"):
        dist.new_group([0, 1] if mine else [0])
    dist.barrier()
    collectives.barrier(comm=group)


def test_a_tag_of_the_user_meets_no_collective(context: Any) -> None:
    """A message with the tag that an all-reduce uses waits while one goes on."""
    from mpidl.collectives.engine.execute import message_tag
    from mpidl.collectives.engine.reduction import NUMBERS, call_hash
    from mpidl.comm.activity import Call

    if context.size < 2:
        return
    x, number = np.ones(3), NUMBERS[np.dtype(np.float64).num]
    tag = message_tag(3, number, call_hash(Call("all_reduce", None, "sum")))
    if context.rank == 0:
        collectives.send(np.full(3, 100.0), 1, comm=context.comm, tag=tag)
    collectives.all_reduce(x, comm=context.comm, algorithm="ring")
    np.testing.assert_array_equal(x, context.size)
    if context.rank == 1:
        collectives.recv(x, 0, comm=context.comm, tag=tag)
        np.testing.assert_array_equal(x, 100)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("algorithm", ["auto", *ALL_REDUCE])
def test_a_mean_of_16_bit_floats_is_divided_before_its_one_rounding(
    context: Any, group: Group, dtype: Any, algorithm: str
) -> None:
    parts = [
        np.random.default_rng([3, rank]).standard_normal(1001).astype(dtype)
        for rank in range(context.size)
    ]
    for part in parts:
        part[:3] = [2.0**-24, 6e4, -6e4]
    exact = np.mean([part.astype(np.float64) for part in parts], axis=0)

    def check(got: np.ndarray, wanted: np.ndarray) -> None:
        step = np.spacing(np.abs(wanted).astype(dtype)).astype(np.float64)
        assert (np.abs(got.astype(np.float64) - wanted) <= 0.5001 * step).all()

    for length in (1, 2):  # parts without elements
        x = parts[context.rank][:length].copy()
        collectives.all_reduce(x, comm=group, op="mean", algorithm=algorithm)
        check(x, exact[:length])
    for exactly in (False, True):
        x = parts[context.rank].copy()
        collectives.all_reduce(x, comm=group, op="mean", algorithm=algorithm, exact=exactly)
        check(x, exact)
    x = parts[context.rank].copy()
    collectives.reduce(x, comm=group, op="mean")
    if context.rank == 0:
        check(x, exact)
    low, high = context.rank * 1001 // context.size, (context.rank + 1) * 1001 // context.size
    check(
        collectives.reduce_scatter(parts[context.rank].copy(), comm=group, op="mean"),
        exact[low:high],
    )


def test_a_mean_has_the_bits_of_sum_and_division(context: Any, group: Group) -> None:
    for dtype in (np.float32, np.float64, np.complex64):
        for length in (5, 50_000, 3_000_001):
            x = np.random.default_rng(context.rank).standard_normal(length).astype(dtype)
            total = x.copy()
            collectives.all_reduce(total, comm=group)
            collectives.all_reduce(x, comm=group, op="mean")
            real = np.dtype(dtype).type(0).real.dtype
            np.testing.assert_array_equal(x.view(real), total.view(real) / context.size)
