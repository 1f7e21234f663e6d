"""Who takes which chunks, played with ranks of different speed."""

from __future__ import annotations

import heapq
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mpidl.inference.shares import Shares, how_many, runs


@given(st.integers(0, 300), st.lists(st.floats(0.5, 2), min_size=1, max_size=6), st.integers(1, 8))
def test_ranks_take_each_number_once_and_end_together(
    count: int, seconds: list[float], most: int
) -> None:
    """Each knows only what it has taken itself; a number takes it `seconds`."""
    taken: list[int] = []
    next_ = 0
    free = [(0.0, rank, 0) for rank in range(len(seconds))]  # when, who, what it knows
    ends = [0.0] * len(seconds)
    heapq.heapify(free)
    while free:
        now, rank, seen = heapq.heappop(free)
        wanted = how_many(count - seen, len(seconds), most)
        assert 1 <= wanted <= most
        numbers = range(min(next_, count), min(next_ + wanted, count))
        next_ += wanted
        taken += numbers
        ends[rank] = now + len(numbers) * seconds[rank]
        if numbers:
            heapq.heappush(free, (ends[rank], rank, numbers.stop))
    assert taken == list(range(count))
    assert max(ends) - min(ends) <= (most + 1) * max(seconds), "at most one take"


@given(st.sets(st.integers(0, 60), min_size=1), st.data())
def test_runs_are_of_chunks_that_follow_each_other(chosen: set[int], data: st.DataObject) -> None:
    chunks = np.array(sorted(chosen))
    start = data.draw(st.integers(0, len(chunks)))
    numbers = range(start, data.draw(st.integers(start, len(chunks))))
    found = list(runs(numbers, chunks))
    assert [number for run in found for number in run] == list(numbers)
    for run in found:
        own = chunks[run.start : run.stop]
        assert len(own) and (np.diff(own) == 1).all()
    for before, after in pairwise(found):
        assert chunks[after.start] > chunks[before.stop - 1] + 1, "as long as can be"


def test_nothing_is_taken_after_a_stop() -> None:
    alone: Any = SimpleNamespace(size=1, rank=0, is_root=True, comm=None)
    shares = Shares(alone)
    shares.open(20)
    assert shares.take(4) == range(4) and shares.take() == range(4, 5)
    shares.stop()
    assert not shares.take(4)
    shares.open(3)
    assert [list(shares.take(4)) for _ in range(4)] == [[0], [1], [2], []]
