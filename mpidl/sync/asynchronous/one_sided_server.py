"""Parameter servers by one-sided communication: workers read and change the servers' memory, and no server has anything to do.

A worker's optimizer takes its step on the parameters it has read, and the difference is added on the servers, each element
whole. So the state of an optimizer is the worker's own, and its rate is divided by the number of workers. The bound on
staleness is kept by the workers themselves: their clocks lie in the first server's memory, and who is too far ahead waits.
"""

from __future__ import annotations

import time
from typing import Any, Literal

import numpy as np

from mpidl.collectives import all_reduce
from mpidl.collectives.schedule import part
from mpidl.comm.context import Context
from mpidl.nn import FlatParameters
from mpidl.options import Positive
from mpidl.sync.asynchronous.parameter_server import ServerOptions, check_servers, share_of
from mpidl.sync.asynchronous.strategy import AsynchronousStrategy, Update, Window
from mpidl.sync.strategy import RunInfo, StepScalars

TICKETS, UPDATES, CLOCKS = 0, 1, 2
GONE = 1 << 40  # on the clock of a worker that has finished the epoch
PAUSE = 0.0002  # seconds between looks


class OneSidedParameterServer(AsynchronousStrategy):
    """servers: the last ranks; staleness: steps that a worker may be ahead of the slowest, 1 or more; None: any number."""

    class Options(ServerOptions, frozen=True):
        """Options of one_sided_server.

        Attributes:
            servers: How many ranks only hold parameters: the last ones.
            staleness: Steps that a worker may be ahead of the slowest: 1 or more, or
                "unbounded" asynchronous.
        """

        staleness: Positive | Literal["unbounded"] = "unbounded"  # type: ignore[assignment]

    @classmethod
    def create(
        cls, options: Options, parameters: FlatParameters, context: Context, run: RunInfo
    ) -> OneSidedParameterServer:
        """The strategy with `options`. Collective."""
        return cls(
            parameters,
            context,
            servers=options.servers,
            staleness=options.bound,
        )

    @classmethod
    def training_ranks(cls, options: Options, ranks: int) -> int:
        """All but the servers."""
        return ranks - options.servers

    @classmethod
    def check(cls, options: Options, run: RunInfo) -> None:
        """Also refuse servers that leave no worker."""
        super().check(options, run)
        if run.ranks:
            check_servers(options.servers, run.ranks)

    def __init__(
        self,
        parameters: FlatParameters,
        context: Context,
        *,
        servers: int = 1,
        staleness: int | None = None,
    ) -> None:
        check_servers(servers, context.size)
        super().__init__(parameters, context, context.size - servers, "parameter servers")
        self.staleness_bound = staleness
        self.serves = context.rank >= self.workers
        self.ranges = [part(index, servers, parameters.length) for index in range(servers)]
        own = self.ranges[context.rank - self.workers] if self.serves else (0, 0)
        if self.serves:
            self.shard = share_of(parameters, 0, 0)  # no optimizer here
        self._memory = Window(self.group.comm, own[1] - own[0], parameters.dtype)
        first = context.rank == self.workers
        self._counters = Window(self.group.comm, CLOCKS + self.workers if first else 0, np.int64)
        self._before = np.empty_like(parameters.values)
        self._clocks = np.empty(self.workers, np.int64)
        self._limit, self._clock, self._seen = 0, 0, 0

    def load_values(self, whole: Any) -> None:
        self.parameters.values[...] = whole
        self.context.barrier()
        if self.serves:
            start, stop = self.ranges[self.context.rank - self.workers]
            self._memory.replace(self.context.rank, whole[start:stop])
        self.context.barrier()

    def begin_epoch(self, budget: int) -> None:
        self._limit, self._clock = budget, 0
        self.context.barrier()
        if self.context.rank == self.workers:
            for place in (TICKETS, *range(CLOCKS, CLOCKS + self.workers)):
                self._counters.reset(self.workers, place)
        self.context.barrier()

    def serve(self) -> None:
        """Keep MPI going until all workers have finished."""
        if self.serves:
            self._wait_for_all()

    def _wait_for_all(self) -> None:
        done = self.group.comm.Ibarrier()
        while not done.Test():
            time.sleep(PAUSE)

    def end_epoch(self) -> None:
        if not self.serves:
            self._counters.count_up(self.workers, CLOCKS + self.context.rank, GONE)
            self._wait_for_all()

    def next_step(self) -> int | None:
        if self.serves:
            return None
        self._keep_the_bound()
        ticket = self._counters.count_up(self.workers, TICKETS)
        if ticket >= self._limit:
            return None
        self._seen = self._counters.read(self.workers, UPDATES)
        for index, (start, stop) in enumerate(self.ranges):
            self._memory.get(self.workers + index, self.parameters.values[start:stop])
        self._before[...] = self.parameters.values
        return ticket

    def _keep_the_bound(self) -> None:
        """Wait while too far ahead of the slowest worker that is there."""
        if self.staleness_bound is None:
            return
        self.group.doing = ("a slower worker", self._clocks, "min", "clocks")
        try:
            while True:
                self._counters.get(self.workers, self._clocks, CLOCKS)
                if self._clock - int(self._clocks.min()) <= self.staleness_bound:
                    return
                time.sleep(PAUSE)
        finally:
            self.group.doing = None
            self.group.count += 1

    def apply_gradients(self, lr: float, update: Update) -> None:
        update(lr / self.workers)
        self._before -= self.parameters.values
        self._before *= -1
        for index, (start, stop) in enumerate(self.ranges):
            self._memory.add(self.workers + index, self._before[start:stop])
            self.sent += 2 * (stop - start) * self._before.itemsize
        self._clock += 1
        self._counters.count_up(self.workers, CLOCKS + self.context.rank)
        self.staleness[self._counters.count_up(self.workers, UPDATES) - self._seen] += 1

    def synchronize(self) -> StepScalars:
        self.context.barrier()
        for index, (start, stop) in enumerate(self.ranges):
            self._memory.get(self.workers + index, self.parameters.values[start:stop])
        self.context.barrier()
        return StepScalars()

    def gather_full(self, array: Any) -> Any:
        """The mean of the workers' optimizers."""
        full = np.zeros(self.parameters.length, self.parameters.dtype)
        if not self.serves:
            full += array / self.workers
        all_reduce(full, comm=self.group, name="optimizer state")
        if not self.serves:
            array[...] = full  # as after a resume
        return full

    def load_shard(self, whole: Any, array: Any) -> None:
        if not self.serves:
            array[...] = whole
