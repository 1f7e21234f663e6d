"""Buckets leave complete, once, in order; the tuner finds the fastest size.

The communication thread keeps order and raises the first error.
"""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpidl.backend.numpy_ops import NumpyOps
from mpidl.comm.thread import CommunicationThread
from mpidl.nn import FlatParameters, ParameterSpec
from mpidl.sync.synchronous.buckets import Bucket, BucketDispatcher, BucketTuner, cut


@given(st.lists(st.integers(1, 500), min_size=1, max_size=12), st.integers(4, 4000))
@settings(max_examples=100, deadline=None)
def test_buckets_cover_everything_once_and_leave_when_complete(
    sizes: list[int], nbytes: int
) -> None:
    flat = FlatParameters(
        [ParameterSpec(f"p{index}", (size,)) for index, size in enumerate(sizes)], NumpyOps()
    )
    buckets = cut(flat, nbytes)
    assert buckets[0].stop == flat.length and buckets[-1].start == 0
    assert all(later.stop == earlier.start for earlier, later in pairwise(buckets))
    assert all(bucket.stop - bucket.start >= nbytes // 4 for bucket in buckets[:-1])
    assert sum(len(bucket.layout(flat)) for bucket in buckets) == len(sizes)
    gone: list[Bucket] = []
    departures = BucketDispatcher(buckets, gone.append)
    for _ in range(2):
        gone.clear()
        for slot in reversed(flat.slots.values()):
            departures.ready(slot.start)
            assert all(bucket.start >= slot.start for bucket in gone)
        departures.flush()
        assert gone == buckets


def test_the_tuner_stays_with_the_fastest() -> None:
    tuner, steps = BucketTuner([1, 2, 3], steps=4), 0
    while tuner.best is None:
        tuner.record({1: 0.3, 2: 0.1, 3: 0.2}[tuner.current])
        steps += 1
    assert tuner.best == tuner.current == 2 and steps == 12
    assert not tuner.record(9.0)


def test_the_thread_keeps_order_and_raises_the_first_error() -> None:
    worker, seen = CommunicationThread(), []
    for index in range(20):
        worker.submit(lambda index=index: (time.sleep(0.001), seen.append(index)))
    worker.drain()
    assert seen == list(range(20))
    for job in (lambda: 1 / 0, lambda: seen.append("skipped")):
        worker.submit(job)
    with pytest.raises(ZeroDivisionError):
        worker.drain()
    assert "skipped" not in seen
    worker.submit(lambda: seen.append("again"))
    worker.drain()
    assert seen[-1] == "again"
    worker.close()
