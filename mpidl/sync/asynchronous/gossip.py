"""Asynchronous gossip: after a step a rank averages with one other, which need not wait."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from mpidl.collectives import all_reduce
from mpidl.collectives.window import Window
from mpidl.comm.context import Context
from mpidl.nn import FlatParameters
from mpidl.options import Positive, Section
from mpidl.sync.asynchronous.strategy import AsynchronousStrategy, Update
from mpidl.sync.asynchronous.tickets import Tickets
from mpidl.sync.strategy import RunInfo, StepScalars
from mpidl.sync.topology import Graph


class AsyncGossip(AsynchronousStrategy):
    """Averages of pairs of ranks by one-sided communication (AD-PSGD: Lian et al., 2018).

    Every rank's parameters lie in a window that the others can read and add to. What one gains in
    an average the other loses, by atomic sums of elements, so the mean over all ranks never changes
    but by gradients, however the exchanges interleave.

    Attributes:
        graph: Where partners come from.
    """

    class Options(Section, frozen=True):
        """Options of async_gossip.

        Attributes:
            graph: Where partners come from: "random", "exponential" or "complete".
            period: Steps between exchanges.
        """

        graph: Literal["random", "exponential", "complete"] = "exponential"
        period: Positive = 1

    options: Options

    def __init__(
        self,
        parameters: FlatParameters,
        context: Context,
        options: Section | None = None,
        run: RunInfo | None = None,
    ) -> None:
        super().__init__(parameters, context, options, run)
        self.graph = Graph(self.options.graph, context.size, self.run.seed)
        self._window = Window(self.group.comm, parameters.length, parameters.dtype)
        self._tickets = Tickets(self.group.comm, everywhere=True)
        self._before = np.empty_like(parameters.values)  # this step's own window
        self._other = np.empty_like(parameters.values)
        self._rng = np.random.default_rng([self.run.seed, context.rank])
        self._steps = 0
        self._seen = 0

    def load_values(self, whole: Any) -> None:
        self.parameters.values[...] = whole
        self._put_own(whole)

    def _put_own(self, values: Any) -> None:
        """Replace this rank's window, while nobody else works on it. Collective."""
        self.context.barrier()
        self._window.replace(self.context.rank, values)
        self.context.barrier()

    def begin_epoch(self, budget: int) -> None:
        self._tickets.open(budget)

    def next_step(self) -> int | None:
        number = self._tickets.take()
        if number >= self._tickets.budget:
            return None
        self._seen = self._tickets.updates(self.context.rank)
        self._window.get(self.context.rank, self._before)
        self.parameters.values[...] = self._before
        return number

    def apply_gradients(self, lr: float, update: Update) -> None:
        update(lr)
        change = self.parameters.ops.to_host(self.parameters.values - self._before)
        self._window.accumulate(self.context.rank, change)
        self.staleness[self._tickets.updates(self.context.rank) - self._seen] += 1
        self._steps += 1
        if self._steps % self.options.period == 0 and self.context.size > 1:
            self._average(self._partner())

    def _partner(self) -> int:
        rank, size = self.context.rank, self.context.size
        if self.graph.kind == "exponential":
            return (rank + (1 << self._steps // self.options.period % self.graph.period)) % size
        return int((rank + self._rng.integers(1, size)) % size)

    def _average(self, partner: int) -> None:
        self._window.get(partner, self._other)
        self._window.get(self.context.rank, self._before)
        self._other -= self._before
        self._other *= self._other.dtype.type(0.5)
        self._window.accumulate(self.context.rank, self._other)
        self._window.accumulate(partner, -self._other)
        self._tickets.count_update(partner)
        self.sent += 2 * self._other.nbytes

    def synchronize(self) -> StepScalars:
        """All windows become the mean of all."""
        self.context.barrier()
        self._window.get(self.context.rank, self._before)
        values = self.parameters.values
        values[...] = self._before
        all_reduce(values, comm=self.group, op="mean", name="parameters")
        self._put_own(values)
        self.average_optimizers()
        return StepScalars()

    def report(self) -> dict[str, Any]:
        return super().report() | {"spectral_gap": self.graph.spectral_gap()}
