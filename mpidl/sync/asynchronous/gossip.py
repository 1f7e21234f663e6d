"""Asynchronous gossip: whenever a rank has done a step, it averages with one other, which need not wait (AD-PSGD: Lian et
al., 2018).

Every rank's parameters lie in a window that the others can read and add to. What one gains in an average the other loses, by
sums of whole elements, so the mean over all ranks never changes but by gradients, however the exchanges interleave.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from mpidl.collectives import all_reduce
from mpidl.comm.context import Context
from mpidl.nn import FlatParameters
from mpidl.options import Positive, Section
from mpidl.sync.asynchronous.strategy import AsynchronousStrategy, Update, Window
from mpidl.sync.strategy import RunInfo, StepScalars
from mpidl.sync.topology import Graph

TICKETS, UPDATES = 0, 1


class AsyncGossip(AsynchronousStrategy):
    """graph: where partners come from; period: steps between exchanges."""

    class Options(Section, frozen=True):
        """Options of async_gossip.

        Attributes:
            graph: Where partners come from: "random", "exponential" or "complete".
            period: Steps between exchanges.
        """

        graph: Literal["random", "exponential", "complete"] = "exponential"
        period: Positive = 1

    @classmethod
    def create(
        cls, options: Options, parameters: FlatParameters, context: Context, run: RunInfo
    ) -> AsyncGossip:
        """The strategy with `options`. Collective."""
        graph = Graph(options.graph, context.size, run.seed)
        return cls(parameters, context, graph, period=options.period)

    def __init__(
        self, parameters: FlatParameters, context: Context, graph: Graph, *, period: int = 1
    ) -> None:
        super().__init__(parameters, context, context.size, "gossip")
        self.graph, self.period = graph, period
        self._window = Window(self.group.comm, parameters.length, parameters.dtype)
        self._counters = Window(self.group.comm, 2, np.int64)
        self._before, self._other = (
            np.empty_like(parameters.values),
            np.empty_like(parameters.values),
        )
        self._rng = np.random.default_rng([graph.seed, context.rank])
        self._limit, self._steps, self._seen = 0, 0, 0

    def load_values(self, whole: Any) -> None:
        self.parameters.values[...] = whole
        self._put_own(whole)

    def _put_own(self, values: Any) -> None:
        """Replace this rank's window, while nobody else works on it."""
        self.context.barrier()
        self._window.replace(self.context.rank, values)
        self.context.barrier()

    def begin_epoch(self, budget: int) -> None:
        self._limit = budget
        self.context.barrier()
        if self.context.is_root:
            self._counters.reset(0, TICKETS)
        self.context.barrier()

    def next_step(self) -> int | None:
        ticket = self._counters.count_up(0, TICKETS)
        if ticket >= self._limit:
            return None
        self._seen = self._counters.read(self.context.rank, UPDATES)
        self._window.get(self.context.rank, self._before)
        self.parameters.values[...] = self._before
        return ticket

    def apply_gradients(self, lr: float, update: Update) -> None:
        update(lr)
        self._window.add(self.context.rank, self.parameters.values - self._before)
        self.staleness[self._counters.read(self.context.rank, UPDATES) - self._seen] += 1
        self._steps += 1
        if self._steps % self.period == 0 and self.context.size > 1:
            self._average(self._partner())

    def _partner(self) -> int:
        rank, size = self.context.rank, self.context.size
        if self.graph.kind == "exponential":
            return (rank + (1 << self._steps // self.period % self.graph.period)) % size
        return int((rank + self._rng.integers(1, size)) % size)

    def _average(self, partner: int) -> None:
        self._window.get(partner, self._other)
        self._window.get(self.context.rank, self._before)
        self._other -= self._before
        self._other *= self._other.dtype.type(0.5)
        self._window.add(self.context.rank, self._other)
        self._window.add(partner, -self._other)
        self._counters.count_up(partner, UPDATES)
        self.sent += 2 * self._other.nbytes

    def synchronize(self) -> StepScalars:
        """All windows become the mean of all."""
        self.context.barrier()
        self._window.get(self.context.rank, self._before)
        values = self.parameters.values
        values[...] = self._before
        all_reduce(values, comm=self.group, op="mean", name="parameters")
        self._put_own(values)
        self.average_optimizers(self.group)
        return StepScalars()

    def report(self) -> dict[str, Any]:
        return super().report() | {"spectral_gap": self.graph.spectral_gap()}
