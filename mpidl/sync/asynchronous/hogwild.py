"""Hogwild!: the ranks of a node change one set of parameters in shared memory, without locks (Recht et al., 2011).

Where gradients are sparse, updates seldom touch the same element and little is lost; where they are dense, updates of others
get partly overwritten, and the noise grows with the number of ranks: the paper's caveat. Nodes are averaged now and then.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpidl.collectives import Group, all_reduce, broadcast
from mpidl.comm import mpi
from mpidl.comm.context import Context
from mpidl.errors import ConfigError
from mpidl.nn import FlatParameters
from mpidl.options import Positive, Section
from mpidl.sync.asynchronous.strategy import AsynchronousStrategy, Update, Window
from mpidl.sync.strategy import RunInfo, StepScalars

TICKETS, UPDATES = 0, 1  # counters in shared memory


class Hogwild(AsynchronousStrategy):
    """sparse: change only elements with a gradient (plain SGD). average_every: steps between averages of the nodes.

    Each rank has an optimizer state of its own; its rate is divided by the number of ranks, since each makes a step where a
    synchronous run makes one for all.
    """

    class Options(Section, frozen=True):
        """Options of hogwild.

        Attributes:
            sparse: Change only elements that have a gradient (plain SGD only).
            average_every: Steps between averages of the nodes.
        """

        sparse: bool = False
        average_every: Positive = 16

    @classmethod
    def create(
        cls, options: Options, parameters: FlatParameters, context: Context, run: RunInfo
    ) -> Hogwild:
        """The strategy with `options`. Collective."""
        every = options.average_every
        return cls(parameters, context, sparse=options.sparse, average_every=every)

    @classmethod
    def check(cls, options: Options, run: RunInfo) -> None:
        """Also refuse sparse updates with an optimizer that changes every element."""
        super().check(options, run)
        if options.sparse and not run.sparse_updates:
            raise ConfigError(
                "sparse updates leave alone what has no gradient; momentum, weight decay and other "
                "optimizers change it too",
                where="sync.sparse",
                remedy='set optim.name = "sgd" with momentum = 0 and weight_decay = 0, or '
                "sync.sparse = false",
            )

    def __init__(
        self,
        parameters: FlatParameters,
        context: Context,
        *,
        sparse: bool = False,
        average_every: int = 16,
    ) -> None:
        super().__init__(parameters, context, context.size, "hogwild")
        self.sparse, self.average_every = sparse, average_every
        MPI = mpi.load()
        self.node = context.comm.Split_type(MPI.COMM_TYPE_SHARED, context.rank)
        leads = self.node.Get_rank() == 0
        leaders = context.comm.Split(0 if leads else MPI.UNDEFINED, context.rank)
        self.leaders = Group(leaders, name="node leaders") if leads and context.nodes > 1 else None
        self._memory = Window(
            self.node, parameters.length if leads else 0, parameters.dtype, shared=True
        )
        self._counters = Window(self.node, 2 if leads else 0, np.int64)
        private, parameters.values = parameters.values, self._memory.of(0)
        if leads:
            parameters.values[...] = private
        self.node.Barrier()
        self._limit, self._rounds, self._seen = 0, 0, 0

    def start(self) -> None:
        if self.context.is_root:
            start = self.parameters.values.copy()
        else:
            start = np.empty_like(self.parameters.values)
        broadcast(start, comm=self.group, name="parameters")
        if self.node.Get_rank() == 0:
            self.parameters.values[...] = start
        self.node.Barrier()

    def begin_epoch(self, budget: int) -> None:
        size = self.node.Get_size()
        self._limit, self._rounds = budget * size // self.workers, 0  # this node's share
        self._periods = budget // self.workers // self.average_every
        self.node.Barrier()
        if self.node.Get_rank() == 0:
            self._counters.reset(0, TICKETS)
        self.node.Barrier()

    def next_step(self) -> int | None:
        ticket = self._counters.count_up(0, TICKETS)
        if (
            self.leaders is not None
            and ticket >= (self._rounds + 1) * self.average_every * self.node.Get_size()
        ):
            self._average_nodes()
        if ticket >= self._limit:
            return None
        self._seen = self._counters.read(0, UPDATES)
        return int(ticket * self.workers // self.node.Get_size())

    def apply_gradients(self, lr: float, update: Update) -> None:
        if self.sparse:
            self.parameters.ops.sparse_sgd(
                self.parameters.values, self.parameters.gradients, lr / self.workers
            )
        else:
            update(lr / self.workers)
        self.staleness[self._counters.count_up(0, UPDATES) - self._seen] += 1

    def add(self, places: Any, values: Any) -> None:
        """Parameters at `places` (k,) += values (k,), without a lock: for gradients that are known to be sparse.

        For loops of one's own: the paper's update, of as many elements as a sample has features. Does not count as a step.
        """
        self.parameters.values[places] += values

    def end_epoch(self) -> None:
        """The leaders make up for averages that their last steps have not come to: all do equally many."""
        while self.leaders is not None and self._rounds < self._periods:
            self._average_nodes()

    def _average_nodes(self) -> None:
        """Add the difference to the mean, so that what other ranks write meanwhile stays."""
        if self._rounds >= self._periods:
            return
        assert self.leaders is not None
        self._rounds += 1
        snapshot = self.parameters.values.copy()
        mean = snapshot.copy()
        all_reduce(mean, comm=self.leaders, op="mean", name="parameters of nodes")
        self.sent += 2 * (self.leaders.size - 1) * mean.nbytes // self.leaders.size
        self.parameters.values += mean - snapshot

    def synchronize(self) -> StepScalars:
        self.context.barrier()
        if self.leaders is not None:
            all_reduce(
                self.parameters.values, comm=self.leaders, op="mean", name="parameters of nodes"
            )
        self.average_optimizers(self.group)
        self.context.barrier()
        return StepScalars()

    def load_values(self, whole: Any) -> None:
        if self.node.Get_rank() == 0:
            self.parameters.values[...] = whole
        self.node.Barrier()
