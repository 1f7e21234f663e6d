"""The rules of parameter servers, over random delays, losses and returns of workers."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mpidl.sync.asynchronous.parameter_server.clocks import Clocks

EVENTS = st.lists(
    st.tuples(st.sampled_from(["go", "go", "go", "lose", "back", "again"]), st.integers(0, 4)),
    max_size=120,
)


class Remote:
    """One worker as the network sees it: gradients arrive late, answers come or get lost."""

    def __init__(self) -> None:
        self.number = 0
        self.computing = False
        self.gone = False


class Network:
    """Workers, and what a server that follows the rules does with their messages."""

    def __init__(self, count: int, staleness: int | None) -> None:
        self.clocks = Clocks(staleness)
        self.workers = [Remote() for _ in range(count)]
        self.sent: set[tuple[int, int]] = set()
        self.used: list[tuple[int, int]] = []
        for index in range(count):
            self.clocks.join(index)
            self.clocks.ask(index)
        self.release()

    def release(self) -> None:
        """Nobody computes further ahead of the slowest than is allowed."""
        for index in self.clocks.release():
            ahead = self.clocks.clocks[index] - min(self.clocks.clocks.values())
            assert self.clocks.staleness is None or ahead <= self.clocks.staleness
            self.workers[index].computing = True

    def arrive(self, index: int) -> None:
        gradient = index, self.workers[index].number
        self.sent.add(gradient)
        if self.clocks.accept(*gradient):
            self.used.append(gradient)

    def happen(self, what: str, index: int) -> None:
        worker = self.workers[index]
        if what == "go" and worker.computing and not worker.gone:  # its gradient arrives
            worker.number += 1
            worker.computing = False
            self.arrive(index)
        elif what == "again" and not worker.gone and worker.number:  # the same, a second time
            self.arrive(index)
            if worker.computing:
                self.clocks.waiting.discard(index)
        elif what == "lose" and not worker.gone:
            worker.gone, worker.computing = True, False
            self.clocks.leave(index)
        elif what == "back" and worker.gone:
            worker.gone = False
            worker.number = self.clocks.join(index)  # it learns what was used
            self.clocks.ask(index)


@given(st.integers(1, 5), st.sampled_from([0, 1, 2, 5, None]), EVENTS)
@settings(max_examples=300, deadline=None)
def test_the_bound_holds_and_every_gradient_counts_once(
    count: int, staleness: int | None, events: list[tuple[str, int]]
) -> None:
    network = Network(count, staleness)
    for what, index in events:
        network.happen(what, index % count)
        network.release()
    assert len(network.used) == len(set(network.used))  # never twice
    assert set(network.used) == network.sent  # and never lost
    assert sum(network.clocks.applied.values()) == len(network.used)


@given(st.integers(2, 6), st.integers(0, 3), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_everybody_gets_on_whatever_the_delays(count: int, staleness: int, random: object) -> None:
    """No deadlock: as long as anybody computes, the slowest can go on, and all finish."""
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
