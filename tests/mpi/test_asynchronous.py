"""Asynchronous operations: fused where small, the same bits, own errors; who joins last."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mpidl.distributed as dist
from mpidl.collectives import Group, all_reduce
from mpidl.distributed import channel
from mpidl.errors import CollectiveError

pytestmark = pytest.mark.mpi


@pytest.fixture(scope="module", autouse=True)
def world() -> Iterator[None]:
    dist.init(joinable=True)
    yield
    dist.shutdown()


@pytest.fixture
def group(context: Any) -> Iterator[Any]:
    made = dist.new_group(range(dist.size()))
    yield made
    made.free()


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the messages of the communication thread, without those of agreeing."""
    seen: list[int] = []

    def counting(buffer: Any, **options: Any) -> None:
        if not options["name"].startswith("number of"):
            seen.append(buffer.size)
        all_reduce(buffer, **options)

    monkeypatch.setattr(channel, "all_reduce", counting)
    return seen


class Blocked:
    """Keeps the communication thread busy, so that what is submitted waits."""

    def __init__(self, group: Any) -> None:
        self._go = threading.Event()
        self._handle = group.async_channel().submit(lambda _: self._go.wait())

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self._go.set()
        self._handle.wait()


@pytest.mark.parametrize("op", ["sum", "mean", "max", "product"])
@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.int16, np.float16, ml_dtypes.bfloat16]
)
def test_fused_all_reduces_have_the_bits_of_single_ones(
    context: Any, group: Any, messages: list[int], op: str, dtype: Any
) -> None:
    rng = np.random.default_rng(context.rank)
    arrays = [(rng.standard_normal((index % 7, 3)) * 2).astype(dtype) for index in range(1, 40)]
    wanted = [array.copy() for array in arrays]
    for array in wanted:
        dist.all_reduce(array, op, group=group)
    with Blocked(group):
        handles = [dist.all_reduce(array, op, group=group, async_op=True) for array in arrays]
    for handle, array, right in zip(handles, arrays, wanted, strict=True):
        assert handle.wait() is array
        assert array.tobytes() == right.tobytes()
    assert len(messages) < len(arrays) and sum(messages) == sum(array.size for array in arrays)


def test_ranks_whose_queues_differ_fuse_alike(
    context: Any, group: Any, messages: list[int]
) -> None:
    arrays = [np.full(3, float(index)) for index in range(20)]
    handles = []
    for index, array in enumerate(arrays):
        handles.append(dist.all_reduce(array, group=group, async_op=True))
        if context.rank and index % (context.rank + 2) == 0:
            handles[-1].wait()  # a queue that is often empty
    for index, handle in enumerate(handles):
        np.testing.assert_array_equal(handle.wait(), index * context.size)
    assert len(set(context.allgather_object(tuple(messages), tuple[int, ...]))) == 1


def test_the_order_is_kept_across_kinds_and_arrays_used_twice(context: Any, group: Any) -> None:
    x, whole = np.ones(4), np.ones(10)
    with Blocked(group):
        handles = [dist.all_reduce(x, group=group, async_op=True) for _ in range(3)]
        handles += [
            dist.all_reduce(part, group=group, async_op=True) for part in (whole[:6], whole[4:])
        ]
        handles.append(dist.broadcast(x, group=group, async_op=True))
        handles.append(dist.all_reduce(x, "max", group=group, async_op=True))
        handles.append(dist.all_reduce(np.ones(100_000, np.float32), group=group, async_op=True))
    for handle in handles:
        handle.wait()
    np.testing.assert_array_equal(x, context.size**3)
    np.testing.assert_array_equal(
        whole, [context.size] * 4 + [context.size**2] * 2 + [context.size] * 4
    )


def test_each_handle_of_a_fused_message_gets_its_own_error(context: Any, group: Any) -> None:
    if context.size < 2:
        return
    odd = context.rank == 1
    arrays = [np.ones(4) for _ in range(5)]
    with Blocked(group):
        handles = [
            dist.all_reduce(
                array,
                group=group,
                async_op=True,
                name=f"tensor {index + 10 * (odd and index == 2)}",
            )
            for index, array in enumerate(arrays)
        ]
    for index, handle in enumerate(handles):
        if index == 2:
            with pytest.raises(CollectiveError, match=r"rank 0: .*tensor 2.*rank 1: .*tensor 12"):
                handle.wait()
        else:
            np.testing.assert_array_equal(handle.wait(), context.size)


def test_fused_arrays_of_another_cut_are_told_apart(context: Any, group: Any) -> None:
    if context.size < 2:
        return
    sizes = (1, 2) if context.rank == 0 else (2, 1)
    with Blocked(group):
        handles = [dist.all_reduce(np.ones(size), group=group, async_op=True) for size in sizes]
    for handle in handles:
        with pytest.raises(
            CollectiveError, match=r"of 1 x float64.*of 2 x float64|of 2 x float64.*of 1 x float64"
        ):
            handle.wait()


def test_grouped_arrays_of_another_cut_are_told_apart(context: Any, group: Any) -> None:
    if context.size < 2:
        return
    for sizes in ((3, 5), (5, 3)), ((3, 3), (6,)), ((0, 4), (4, 0)):
        arrays = [np.ones(size) for size in sizes[context.rank == 1]]
        with pytest.raises(CollectiveError, match=r"rank 0: .* arrays fused"):
            dist.grouped_all_reduce(arrays, group=group)
    alike = [np.ones(3), np.ones((2, 2), np.float32), np.ones(0), np.ones(())]
    assert all(
        (array == context.size).all()
        for array in dist.grouped_all_reduce(alike, group=group, name="alike")
    )


def test_complex_numbers_are_not_twice_as_many_real_ones(context: Any, group: Any) -> None:
    if context.size < 2:
        return
    for op in ("sum", "mean"):
        x = np.ones(5, np.complex64) if context.rank == 1 else np.ones(10, np.float32)
        with pytest.raises(CollectiveError, match=r"10 x float32.*5 x complex64"):
            dist.all_reduce(x, op, group=group)


def test_an_infinity_does_not_hide_that_another_array_overflows(context: Any, group: Any) -> None:
    if context.size < 2:
        return
    infinite, large, fine = (
        np.full(1, np.inf, np.float16),
        np.full(3, 60000, np.float16),
        np.ones(2, np.float16),
    )
    with Blocked(group):
        handles = [
            dist.all_reduce(array, group=group, async_op=True) for array in (infinite, large, fine)
        ]
    assert handles[0].wait()[0] == np.inf
    with pytest.raises(CollectiveError, match="float16 overflow"):
        handles[1].wait()
    assert (handles[2].wait() == context.size).all()


def test_threads_that_begin_at_once_share_one_channel(
    context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = dist.new_group(range(dist.size()))
    made, start = [], threading.Barrier(4)
    thread = threading.Thread.start

    def slow(self: threading.Thread) -> None:
        time.sleep(0.05)
        thread(self)

    def begin() -> None:
        start.wait()
        made.append(own.async_channel())

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for one in threads:
        one.start()
    monkeypatch.setattr(channel.threading.Thread, "start", slow)
    for one in threads:
        one.join()
    assert len(set(map(id, made))) == 1
    own.free()


def test_ranks_that_start_other_operations_are_told(context: Any, group: Any) -> None:
    if context.size < 2:
        return
    x = np.ones(3, np.float32)
    with pytest.raises(CollectiveError, match="the ranks disagree"):
        if context.rank == 0:
            dist.all_reduce(x, group=group, async_op=True).wait()
        else:
            dist.broadcast(x, group=group, async_op=True).wait()
    assert dist.all_reduce(np.ones(3), group=group, async_op=True).wait()[0] == context.size


def test_an_error_that_nobody_waited_for_comes_with_the_next_call(context: Any, group: Any) -> None:
    for next_call in (
        lambda: dist.all_reduce(np.ones(3), group=group),
        lambda: dist.barrier(group=group),
        lambda: dist.all_reduce(np.ones(3), group=group, async_op=True),
        lambda: dist.broadcast_object(1, group=group),
    ):
        handle = dist.all_reduce(np.ones(3), op="nonsense", group=group, async_op=True)
        while not handle.done():
            pass
        with pytest.raises(
            CollectiveError, match="nobody has waited for failed: unknown operation 'nonsense'"
        ):
            next_call()
        with pytest.raises(CollectiveError, match="unknown operation"):
            handle.wait()
        dist.barrier(group=group)
    other = dist.new_group(range(dist.size()))
    dist.all_reduce(np.ones(3), op="nonsense", group=other, async_op=True)
    with pytest.raises(CollectiveError, match="nobody has waited for"):
        other.free()


def test_without_threads_handles_are_done_at_once(context: Any) -> None:
    own = Group(context.comm, name="no threads")
    straight = channel.Channel(own, thread=False)
    x = np.ones(3)
    handle = straight.submit(channel.Reduction(x, x, "sum", ""))
    assert handle.done() and handle.wait() is x and x[0] == context.size
    own.free()


@pytest.mark.parametrize(
    "steps", [(4, 3, 2, 1), (1, 2, 3, 4), (3, 3, 1, 3), (0, 0, 0, 0), (2, 5, 5, 0)]
)
def test_everybody_learns_who_joined_last(context: Any, steps: tuple[int, ...]) -> None:
    steps = steps[: dist.size()]
    for _ in range(2):
        for _ in range(steps[dist.rank()]):
            dist.all_reduce(np.ones(3))
        last = max(rank for rank, count in enumerate(steps) if count == max(steps))
        assert dist.join() == last
        assert (dist.broadcast(np.full(2, dist.rank()), last) == last).all()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.int32, np.uint8, np.float32])
def test_means_of_those_who_have_not_joined(context: Any, dtype: Any) -> None:
    """16-bit floats are divided in float32; sums of integers that do not fit are refused."""
    for step in range(dist.rank() + 1):
        active = dist.size() - step
        x = np.full(3, 2.0**-24 if dtype == np.float16 else 7, dtype)
        wanted = x.copy()
        dist.all_reduce(x, op="mean")
        np.testing.assert_array_equal(x, wanted)
        assert active > 0
    dist.join()


def test_a_mean_of_integers_among_the_active_does_not_wrap(context: Any) -> None:
    if dist.size() < 3:
        return
    if dist.rank() > 0:
        with pytest.raises(CollectiveError, match="could overflow"):
            dist.all_reduce(np.full(3, 200, np.uint8), op="mean")
    else:
        with pytest.raises(CollectiveError, match="could overflow"):
            dist.join()


def test_big_endian_arrays_do_not_join(context: Any) -> None:
    with pytest.raises(CollectiveError, match="byte order"):
        dist.all_reduce(np.ones(3, ">f4"))
