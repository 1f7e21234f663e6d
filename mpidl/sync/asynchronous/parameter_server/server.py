"""A server: holds a shard of the parameters, and updates it with the gradients that come."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.collectives import Group
from mpidl.comm import mpi
from mpidl.nn import ParameterShard
from mpidl.optim import Optimizer
from mpidl.sync.asynchronous.parameter_server.clocks import Clocks
from mpidl.sync.asynchronous.parameter_server.messages import TAG, Kind, Message


class Server:
    """One rank that holds parameters.

    Args:
        shard: The parameters.
        group: All ranks; the first `workers` of them are workers.
        workers: See group.
        staleness: Steps that a worker may be ahead of the slowest; None: any number.
        delay_compensation: Factor of the correction of late gradients (DC-ASGD); 0: none.

    Attributes:
        clocks: Who may go on, and which gradients count.
        staleness: Updates between a worker's reading the parameters and its own, counted.
        sent: Bytes that this rank has put on the wire.
    """

    def __init__(
        self,
        shard: ParameterShard,
        group: Group,
        workers: int,
        staleness: int | None,
        delay_compensation: float,
    ) -> None:
        self.shard = shard
        self.group = group
        self.workers = workers
        self.delay_compensation = delay_compensation
        self.clocks = Clocks(staleness)
        self.staleness: Counter[int] = Counter()
        self.sent = 0
        self._version = 0  # updates so far
        # version and, for compensation, parameters that each worker has
        self._pulled: dict[int, tuple[int, NDArray[Any] | None]] = {}
        self._sum = np.zeros(shard.length, shard.dtype)  # of the gradients of a round
        self._summed = 0  # gradients in it
        self._lr = 0.0  # of the round
        self._budget = 0  # steps of the epoch
        self._taken = 0
        self._incoming = Message(shard.length, shard.dtype)
        self._outgoing = Message(shard.length, shard.dtype)

    def begin_epoch(self, budget: int) -> None:
        """All workers begin at equal clocks."""
        self._budget = budget
        self._taken = 0
        self.clocks.restart(range(self.workers))

    def serve(self, optimizer: Optimizer) -> None:
        """Until all workers are done with the epoch."""
        MPI = mpi.load()
        status = MPI.Status()
        left = set(range(self.workers))
        message = self._incoming
        while left:
            with self.group.during("gradients from the workers"):
                self.group.comm.Recv(message.words, MPI.ANY_SOURCE, TAG, status)
            worker = status.Get_source()
            if message.kind is Kind.PUSH:
                self._use(worker, message, optimizer)
            elif message.kind is Kind.ASK:
                self.clocks.ask(worker)
            else:
                self.clocks.leave(worker)
                left.discard(worker)
            self._finish_round(optimizer)
            for free in self.clocks.release():
                self._answer(free)

    def _use(self, worker: int, message: Message, optimizer: Optimizer) -> None:
        """Use a gradient, unless it was used before."""
        if not self.clocks.accept(worker, message.number):
            return
        gradient = message.body
        version, then = self._pulled.get(worker, (self._version, None))
        self.staleness[self._version - version] += 1
        if self.clocks.staleness == 0:
            self._sum += gradient
            self._summed += 1
            self._lr = message.lr
            return
        if then is not None:
            moved = self.shard.ops.to_host(self.shard.values) - then
            gradient += gradient.dtype.type(self.delay_compensation) * gradient * gradient * moved
        self._update(gradient, message.lr / self.workers, optimizer)

    def _finish_round(self, optimizer: Optimizer) -> None:
        """Staleness 0: use the mean of a round's gradients, once all workers have sent theirs."""
        if self._summed and self.clocks.complete:
            self._sum *= self._sum.dtype.type(1 / self._summed)
            self._update(self._sum, self._lr, optimizer)
            self._sum[...] = 0
            self._summed = 0

    def _update(self, gradient: NDArray[Any], lr: float, optimizer: Optimizer) -> None:
        self.shard.gradients[...] = self.shard.ops.to_device(gradient)
        optimizer.step(lr)
        self._version += 1

    def _answer(self, worker: int) -> None:
        """Parameters, with the number of the next step or the end of the epoch."""
        answer = self._outgoing
        answer.step = self._taken if self._taken < self._budget else None
        self._taken += 1
        values = self.shard.ops.to_host(self.shard.values)
        answer.body[...] = values
        self._pulled[worker] = (self._version, values.copy() if self.delay_compensation else None)
        with self.group.during(f"worker {worker} to take its parameters"):
            self.group.comm.Send(answer.words, dest=worker, tag=TAG)
        self.sent += answer.words.nbytes
