"""Queue and batcher with a clock of the test: order, limits, deadlines, delays, shares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidl.serving.batcher import Batcher, Lane, Scheduler, Worker
from mpidl.serving.errors import Unavailable
from mpidl.serving.queue import Pending, RequestQueue
from mpidl.serving.settings import ModelSettings

US = 1000


def settings(**options: Any) -> ModelSettings:
    return ModelSettings(path="m", **options)


def request(rows: int = 1, **options: Any) -> Pending:
    return Pending((np.zeros((rows, 1)),), rows, lambda result: None, **options)


def test_the_urgent_come_first_and_equals_in_order() -> None:
    queue = RequestQueue(settings(priority_levels=3, default_priority_level=2))
    requests = [request(priority=p) for p in (0, 3, 1, 2, 9, 1)]
    for now, one in enumerate(requests):
        queue.push(one, now)
    order = [requests.index(one) for one in queue.take(100)]
    assert order == [2, 5, 0, 3, 1, 4]
    assert len(queue) == 0 and queue.rows == 0 and queue.oldest() is None


def test_a_full_queue_refuses() -> None:
    queue = RequestQueue(settings(max_queue_size=2))
    first = request()
    queue.push(first, 0)
    queue.push(request(), 0)
    with pytest.raises(Unavailable, match="maximum queue size"):
        queue.push(request(), 0)
    queue.remove(first)
    queue.push(request(), 0)
    assert len(queue) == 2


@pytest.mark.parametrize("action", ["REJECT", "DELAY"])
def test_deadlines(action: Any) -> None:
    queue = RequestQueue(settings(timeout_action=action, default_timeout_microseconds=10))
    late, short, good = request(), request(timeout=3 * US), request(timeout=99 * US)
    queue.push(late, 0)
    queue.push(short, 1 * US)
    queue.push(good, 5 * US)
    assert queue.next_deadline() == 4 * US
    assert queue.expire(3 * US) == []
    refused = queue.expire(12 * US)
    if action == "REJECT":
        assert refused == [short, late]
        assert queue.take(9) == [good]
    else:
        assert refused == []
        assert queue.take(9) == [good, short, late]


def test_a_request_may_not_say_its_timeout_where_that_is_off() -> None:
    queue = RequestQueue(settings(allow_timeout_override=False))
    queue.push(request(timeout=1), 0)
    assert queue.next_deadline() is None


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 3), st.booleans()), max_size=60))
def test_each_request_is_taken_once_and_batches_keep_their_limit(
    given_: list[tuple[int, int, bool]],
) -> None:
    batcher = Batcher(settings(max_batch_size=8, priority_levels=3))
    requests = [request(rows, priority=priority) for rows, priority, _ in given_]
    for now, one in enumerate(requests):
        batcher.queue.push(one, now)
    gone = [one for one, (_, _, leaves) in zip(requests, given_, strict=True) if leaves]
    for one in gone:
        batcher.queue.remove(one)
        batcher.queue.remove(one)
    taken: list[Pending] = []
    while batch := batcher.take(10**9):
        assert 0 < sum(one.rows for one in batch) <= 8
        taken += batch
    assert sorted(map(id, taken)) == sorted(map(id, set(requests) - set(gone)))
    assert batcher.queue.rows == 0 and len(batcher.queue) == 0


def test_a_batch_waits_for_its_delay_or_for_enough() -> None:
    batcher = Batcher(settings(max_batch_size=4, max_queue_delay_microseconds=100))
    for _ in range(3):
        batcher.queue.push(request(), 5 * US)
    assert batcher.take(50 * US) == [] and batcher.next_time(50 * US) == 105 * US
    assert len(batcher.take(105 * US)) == 3
    for _ in range(5):
        batcher.queue.push(request(), 200 * US)
    assert len(batcher.take(200 * US)) == 4
    assert batcher.take(200 * US) == []


def test_preferred_sizes_need_not_wait() -> None:
    options = {"max_batch_size": 8, "preferred_batch_size": (2, 4)}
    batcher = Batcher(settings(max_queue_delay_microseconds=100, **options))
    batcher.queue.push(request(), 0)
    assert batcher.take(0) == []
    for _ in range(4):
        batcher.queue.push(request(), 0)
    assert len(batcher.take(0)) == 4
    batcher.queue.push(request(3), 0)
    assert [one.rows for one in batcher.take(100 * US)] == [1, 3]
    assert batcher.queue.rows == 0


def test_models_share_ranks_by_weight() -> None:
    scheduler = Scheduler(in_flight=1)
    worker = Worker(1)
    lanes = [
        Lane(handle, Batcher(settings(max_batch_size=1, max_queue_size=10_000, weight=weight)),
             [worker])
        for handle, weight in ((1, 3.0), (2, 1.0))
    ]  # fmt: skip
    for lane in lanes:
        scheduler.add(lane)
        for _ in range(500):
            lane.batcher.queue.push(request(), 0)
    served = {1: 0, 2: 0}
    for number in range(400):
        for lane, chosen, batch in scheduler.dispatch(0):
            assert chosen is worker and len(batch) == 1
            worker.flying.add(number)
            served[lane.handle] += 1
        worker.flying.clear()
    assert served[1] + served[2] == 400
    assert served[1] == pytest.approx(300, abs=3)


def test_a_model_that_was_idle_does_not_make_up_for_it() -> None:
    scheduler = Scheduler(in_flight=1)
    worker = Worker(1)
    lanes = [Lane(handle, Batcher(settings(max_batch_size=1)), [worker]) for handle in (1, 2)]
    for lane in lanes:
        scheduler.add(lane)
    for number in range(100):
        lanes[0].batcher.queue.push(request(), 0)
        for _ in scheduler.dispatch(0):
            worker.flying.add(number)
        worker.flying.clear()
    for lane in lanes:
        for _ in range(50):
            scheduler.wake(lane)
            lane.batcher.queue.push(request(), 0)
    served = {1: 0, 2: 0}
    for number in range(40):
        for lane, _, _ in scheduler.dispatch(0):
            worker.flying.add(number)
            served[lane.handle] += 1
        worker.flying.clear()
    assert served[1] == pytest.approx(20, abs=2)


def test_batches_go_to_the_rank_with_least_to_do_and_to_none_that_is_lost() -> None:
    scheduler = Scheduler(in_flight=2)
    workers = [Worker(1), Worker(2), Worker(3, alive=False)]
    lane = Lane(1, Batcher(settings(max_batch_size=1)), workers)
    scheduler.add(lane)
    for _ in range(9):
        lane.batcher.queue.push(request(), 0)
    sent = []
    for number, (_, worker, _) in enumerate(scheduler.dispatch(0)):
        worker.flying.add(number)
        sent.append(worker.rank)
    assert sent == [1, 2, 1, 2]
