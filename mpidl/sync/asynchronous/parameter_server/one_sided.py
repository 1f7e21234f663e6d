"""Parameter servers by one-sided communication: workers read and change the servers' memory."""

from __future__ import annotations

import time
from typing import Any, Literal

import numpy as np

from mpidl.backend import Array
from mpidl.collectives import all_reduce
from mpidl.collectives.window import Window
from mpidl.comm.context import Context
from mpidl.nn import FlatParameters
from mpidl.options import Positive, Section
from mpidl.sync.asynchronous.parameter_server.roles import ServerOptions, ServerStrategy
from mpidl.sync.asynchronous.strategy import Update
from mpidl.sync.asynchronous.tickets import Tickets
from mpidl.sync.strategy import RunInfo, StepScalars

FINISHED = 1 << 40  # on the clock of a worker that has finished the epoch
POLL = 0.0002  # seconds between looks


class OneSidedParameterServer(ServerStrategy):
    """Servers only lend their memory; they compute nothing.

    A worker's optimizer takes its step on the parameters it has read, and the difference is added
    on the servers, each element atomically. So the state of an optimizer is the worker's own, and
    the learning rate is divided by the number of workers. The bound on staleness is kept by the
    workers themselves: their clocks lie in the first server's memory, and who is too far ahead
    waits.
    """

    class Options(ServerOptions, frozen=True):
        """Options of one_sided_server.

        Attributes:
            servers: How many ranks only hold parameters: the last ones.
            staleness: Steps that a worker may be ahead of the slowest: 1 or more, or
                "unbounded" asynchronous.
        """

        staleness: Positive | Literal["unbounded"] = "unbounded"  # type: ignore[assignment]

    options: Options

    def __init__(
        self,
        parameters: FlatParameters,
        context: Context,
        options: Section | None = None,
        run: RunInfo | None = None,
    ) -> None:
        super().__init__(parameters, context, options, run)
        if self.serves:
            self.shard = parameters.make_shard([])  # no optimizer here
        start, stop = self.own
        self._memory = Window(self.group.comm, stop - start, parameters.dtype)
        self.tickets = Tickets(self.group.comm, self.workers, workers=self.workers)
        self._before = np.empty_like(parameters.values)
        self._clock = 0
        self._seen = 0

    def load_values(self, whole: Any) -> None:
        self.parameters.values[...] = whole
        self.context.barrier()
        if self.serves:
            self._memory.replace(self.context.rank, whole[slice(*self.own)])
        self.context.barrier()

    def _read(self) -> None:
        """Get the parameters from all servers."""
        values = self.parameters.ops.to_host(self.parameters.values)  # the same memory
        for server, (start, stop) in enumerate(self.ranges, self.workers):
            self._memory.get(server, values[start:stop])

    # --- an epoch ---
    def begin_epoch(self, budget: int) -> None:
        self._clock = 0
        self.tickets.open(budget)

    def serve(self) -> None:
        """Keep MPI going until all workers have finished."""
        if self.serves:
            self._wait_for_all()

    def end_epoch(self) -> None:
        if not self.serves:
            self.tickets.advance(FINISHED)
            self._wait_for_all()

    def _wait_for_all(self) -> None:
        done = self.group.comm.Ibarrier()
        while not done.Test():
            time.sleep(POLL)

    def next_step(self) -> int | None:
        if self.serves:
            return None
        self._keep_the_bound()
        number = self.tickets.take()
        if number >= self.tickets.budget:
            return None
        self._seen = self.tickets.updates()
        self._read()
        self._before[...] = self.parameters.values
        return number

    def _keep_the_bound(self) -> None:
        """Wait while too far ahead of the slowest worker that has not finished."""
        bound = self.options.bound
        if bound is None:
            return
        with self.group.during("a slower worker", name="clocks"):
            while self._clock - self.tickets.slowest() > bound:
                time.sleep(POLL)

    def apply_gradients(self, lr: float, update: Update) -> None:
        update(lr / self.workers)
        self._before -= self.parameters.values
        self._before *= -1
        for server, (start, stop) in enumerate(self.ranges, self.workers):
            self._memory.accumulate(server, self._before[start:stop])
            self.sent += 2 * (stop - start) * self._before.itemsize
        self._clock += 1
        self.tickets.advance()
        self.staleness[self.tickets.count_update() - self._seen] += 1

    # --- consistency ---
    def synchronize(self) -> StepScalars:
        self.context.barrier()
        self._read()
        self.context.barrier()
        return StepScalars()

    def gather_full(self, array: Array) -> Array:
        """The mean of the workers' optimizers."""
        full = np.zeros(self.parameters.length, self.parameters.dtype)
        if not self.serves:
            full += array / self.workers
        all_reduce(full, comm=self.group, name="optimizer state")
        if not self.serves:
            array[...] = full  # as after a resume
        return full

    def load_shard(self, whole: Any, array: Array) -> None:
        if not self.serves:
            array[...] = whole
