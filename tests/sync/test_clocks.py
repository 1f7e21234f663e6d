"""The rules of parameter servers, over random delays, losses and returns of workers."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from mpidl.sync.asynchronous.parameter_server.clocks import Clocks

EVENTS = st.lists(
    st.tuples(st.sampled_from(["go", "go", "go", "lose", "back", "again"]), st.integers(0, 4)),
    max_size=120,
)


class Remote:
    """One worker as the network sees it: it computes, its gradient arrives some time, an answer comes or gets lost."""

    def __init__(self) -> None:
        self.number, self.computing, self.gone = 0, False, False


@given(st.integers(1, 5), st.sampled_from([0, 1, 2, 5, None]), EVENTS)
@settings(max_examples=300, deadline=None)
def test_the_bound_holds_and_every_gradient_counts_once(
    count: int, staleness: int | None, events: list[tuple[str, int]]
) -> None:
    clocks, workers, arrived = (
        Clocks(staleness),
        [Remote() for _ in range(count)],
        Counter[tuple[int, int]](),
    )
    used: list[tuple[int, int]] = []
    for index in range(count):
        clocks.join(index)
        clocks.ask(index)

    def begin() -> None:
        for index in clocks.release():
            slowest = min(clocks.clocks.values())
            if staleness is not None:
                assert clocks.clocks[index] - slowest <= staleness  # nobody computes further ahead
            workers[index].computing = True

    begin()
    for what, index in events:
        index %= count
        worker = workers[index]
        if (
            what == "go" and worker.computing and not worker.gone
        ):  # its gradient arrives, whenever that is
            worker.number += 1
            worker.computing = False
            arrived[index, worker.number] += 1
            if clocks.accept(index, worker.number):
                used.append((index, worker.number))
        elif (
            what == "again" and not worker.gone and worker.number
        ):  # the same gradient, sent a second time
            arrived[index, worker.number] += 1
            if clocks.accept(index, worker.number):
                used.append((index, worker.number))
            if worker.computing:
                clocks.waiting.discard(index)
        elif what == "lose" and not worker.gone:
            worker.gone, worker.computing = True, False
            clocks.leave(index)
        elif what == "back" and worker.gone:
            worker.gone = False
            worker.number = clocks.join(index)  # it learns what was used, and goes on from there
            clocks.ask(index)
        begin()
    assert len(used) == len(set(used))  # never twice
    assert set(used) == set(arrived)  # and never lost
    assert sum(clocks.applied.values()) == len(used)


@given(st.integers(2, 6), st.integers(0, 3), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_everybody_gets_on_whatever_the_delays(count: int, staleness: int, random: object) -> None:
    """No deadlock: as long as anybody computes, the slowest can go on; and all finish as many steps as they want."""
    clocks, steps = Clocks(staleness), [0] * count
    for index in range(count):
        clocks.join(index)
        clocks.ask(index)
    computing = set(clocks.release())
    while min(steps) < 8:
        assert computing, "everybody waits"
        index = random.choice(sorted(computing))  # type: ignore[attr-defined]
        computing.discard(index)
        steps[index] += 1
        assert clocks.accept(index, steps[index])
        assert max(clocks.clocks.values()) - min(clocks.clocks.values()) <= staleness + 1
        computing |= set(clocks.release())


def test_staleness_zero_goes_in_rounds() -> None:
    clocks = Clocks(0)
    for worker in range(3):
        clocks.join(worker)
    for worker in (2, 0):
        assert clocks.accept(worker, 1)
        assert clocks.release() == [] and not clocks.complete
    assert clocks.accept(1, 1)
    assert clocks.complete and clocks.release() == [0, 1, 2]


def test_a_worker_that_leaves_holds_nobody_up() -> None:
    clocks = Clocks(0)
    for worker in range(3):
        clocks.join(worker)
    clocks.accept(0, 1)
    clocks.accept(1, 1)
    assert clocks.release() == []
    clocks.leave(2)
    assert clocks.complete and clocks.release() == [0, 1]
    assert clocks.join(2) == 0 and clocks.clocks[2] == 1  # it comes back beside the slowest
