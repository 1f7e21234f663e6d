"""Hogwild!: the ranks of a node change one set of parameters in shared memory, without locks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.collectives import Group, all_reduce, broadcast
from mpidl.collectives.window import Window
from mpidl.comm import mpi
from mpidl.comm.context import Context
from mpidl.errors import ConfigError
from mpidl.nn import FlatParameters, WholeStorage
from mpidl.options import Positive, Section
from mpidl.sync.asynchronous.strategy import AsynchronousStrategy, Update
from mpidl.sync.asynchronous.tickets import Tickets
from mpidl.sync.strategy import RunInfo, StepScalars


class Hogwild(AsynchronousStrategy):
    """Lock-free SGD on the parameters of a node; nodes are averaged now and then.

    Where gradients are sparse, updates seldom touch the same element and little is lost; where
    they are dense, updates of others get partly overwritten, and the noise grows with the number of
    ranks: the paper's caveat (Recht et al., 2011).

    Each rank has an optimizer state of its own. The learning rate is divided by the number of
    ranks, since each takes a step where a synchronous run takes one for all.
    """

    class Options(Section, frozen=True):
        """Options of hogwild.

        Attributes:
            sparse: Change only elements that have a gradient (plain SGD only).
            average_every: Steps between averages of the nodes.
        """

        sparse: bool = False
        average_every: Positive = 16

    options: Options

    @classmethod
    def check(cls, options: Any, run: RunInfo) -> None:
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
        options: Section | None = None,
        run: RunInfo | None = None,
    ) -> None:
        super().__init__(parameters, context, options, run)
        MPI = mpi.load()
        self.node: Any
        self.node = context.comm.Split_type(MPI.COMM_TYPE_SHARED, context.rank)
        self.leads = self.node.Get_rank() == 0
        leaders = context.comm.Split(0 if self.leads else MPI.UNDEFINED, context.rank)
        several = self.leads and context.nodes > 1
        self.leaders = Group(leaders, name="node leaders") if several else None
        self._tickets = Tickets(self.node)
        count = parameters.length if self.leads else 0
        self._memory = Window(self.node, count, parameters.dtype, shared=True)
        shared = self._memory.shared_memory(0)
        if self.leads:
            shared[...] = parameters.values
        self.node.Barrier()
        parameters.use(WholeStorage(shared, parameters.message))
        self._rounds = 0  # averages of the nodes in this epoch
        self._round_limit = 0
        self._seen = 0

    def start(self) -> None:
        if self.context.is_root:
            start = self.parameters.values.copy()
        else:
            start = np.empty_like(self.parameters.values)
        broadcast(start, comm=self.group, name="parameters")
        self.load_values(start)

    def load_values(self, whole: Any) -> None:
        if self.leads:
            self.parameters.values[...] = whole
        self.node.Barrier()

    def begin_epoch(self, budget: int) -> None:
        self._tickets.open(budget * self.node.Get_size() // self.workers)  # this node's share
        self._rounds = 0
        self._round_limit = budget // self.workers // self.options.average_every

    def next_step(self) -> int | None:
        number = self._tickets.take()
        each = self.options.average_every * self.node.Get_size()
        if self.leaders is not None and number >= (self._rounds + 1) * each:
            self._average_nodes(self.leaders)
        if number >= self._tickets.budget:
            return None
        self._seen = self._tickets.updates()
        return int(number * self.workers // self.node.Get_size())

    def apply_gradients(self, lr: float, update: Update) -> None:
        rate = lr / self.workers
        if self.options.sparse:
            self.parameters.ops.sparse_sgd(self.parameters.values, self.parameters.gradients, rate)
        else:
            update(rate)
        self.staleness[self._tickets.count_update() - self._seen] += 1

    def add(self, indices: NDArray[np.integer[Any]], values: NDArray[Any]) -> None:
        """Add to single parameters without a lock: for gradients that are known to be sparse.

        For loops of one's own: the paper's update, of as many elements as a sample has features.
        Does not count as a step.

        Args:
            indices: (k,) elements of the flat buffer.
            values: (k,) added to them.
        """
        self.parameters.values[indices] += values

    def end_epoch(self) -> None:
        """The leaders make up for averages that their last steps have not come to.

        All of them do the same number.
        """
        if self.leaders is not None:
            while self._rounds < self._round_limit:
                self._average_nodes(self.leaders)

    def _average_nodes(self, leaders: Group) -> None:
        """Add the difference to the mean, so that what other ranks write meanwhile stays."""
        if self._rounds >= self._round_limit:
            return
        self._rounds += 1
        snapshot = self.parameters.values.copy()
        mean = snapshot.copy()
        all_reduce(mean, comm=leaders, op="mean", name="parameters of nodes")
        self.count_all_reduce(mean, leaders)
        self.parameters.values += mean - snapshot

    def synchronize(self) -> StepScalars:
        self.context.barrier()
        if self.leaders is not None:
            values = self.parameters.values
            all_reduce(values, comm=self.leaders, op="mean", name="parameters of nodes")
        self.average_optimizers()
        self.context.barrier()
        return StepScalars()
