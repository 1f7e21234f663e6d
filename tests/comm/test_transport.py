"""Host copies of device arrays, on the stand-in for CuPy: each user has memory of its own."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from mpidl.comm import transport
from tests.standin import fake_cupy


@pytest.fixture(autouse=True)
def cupy() -> None:
    fake_cupy.install()


def on_device(host: np.ndarray) -> Any:
    return host.copy().view(fake_cupy.DeviceArray)


def in_threads(work: Any, count: int) -> None:
    """work(index, barrier) in threads; the first error among them."""
    barrier, errors = threading.Barrier(count), []

    def run(index: int) -> None:
        try:
            work(index, barrier)
        except BaseException as error:
            barrier.abort()
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_threads_do_not_share_a_host_copy() -> None:
    """As synchronous and asynchronous collectives on arrays of one size at the same time."""

    def work(index: int, barrier: Any) -> None:
        array = on_device(np.full(1000, float(index)))
        with transport.host_view(array) as host:
            barrier.wait(10)
            np.testing.assert_array_equal(host, index)
            host += 10
            barrier.wait(10)
        np.testing.assert_array_equal(array.get(), index + 10)

    in_threads(work, 4)


def test_threads_do_not_share_chunks() -> None:
    def work(index: int, barrier: Any) -> None:
        array = on_device(np.full(1000, float(index)))

        def add(host: np.ndarray) -> None:
            barrier.wait(10)
            np.testing.assert_array_equal(host, index)
            host += 10
            barrier.wait(10)

        transport.in_chunks(array, add, chunk=800)
        np.testing.assert_array_equal(array.get(), index + 10)

    in_threads(work, 3)


def test_copies_within_copies_are_apart() -> None:
    one, other = on_device(np.ones(5)), on_device(np.full(5, 2.0))
    with transport.host_view(one) as first, transport.host_view(other) as second:
        assert not np.shares_memory(first, second)
        first += second
    np.testing.assert_array_equal(one.get(), 3)
    np.testing.assert_array_equal(other.get(), 2)


def test_nothing_is_held_after_use() -> None:
    import gc
    import weakref

    array = on_device(np.ones(100))
    with transport.host_view(array) as host:
        seen = weakref.ref(host)
    del host
    gc.collect()
    assert seen() is None


def test_chunks_that_fail_leave_no_copy_under_way() -> None:
    array = on_device(np.arange(1000.0))

    def fail(host: np.ndarray) -> None:
        host *= 2
        if host[0] > 300:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        transport.in_chunks(array, fail, chunk=800)
    assert array.get()[100] == 200  # pieces before the failure have gone back
