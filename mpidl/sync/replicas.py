"""What strategies share whose replicas differ between meetings: the average of parameters and optimizer state."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mpidl.collectives import Group, all_reduce, broadcast
from mpidl.comm.context import Context
from mpidl.nn import FlatParameters
from mpidl.sync.strategy import StepScalars, Strategy


class Replicas(Strategy):
    """Every rank has a model and an optimizer of its own.

    Failures are remembered until the ranks meet.
    """

    local_mean = True

    def __init__(self, parameters: FlatParameters, context: Context, name: str) -> None:
        super().__init__(parameters)
        self.context = context
        self.group = Group(context.comm, name=name)
        self._pending = StepScalars()
        self._apart = False  # whether replicas may differ

    def begin(self) -> None:
        broadcast(self.parameters.values, comm=self.group, name="parameters")

    def remember(self, own: StepScalars) -> StepScalars:
        """Keep failures and stops for the next meeting; returns the scalars of a step in which the ranks do not meet."""
        self._pending.add(StepScalars(failed=own.failed, stop=own.stop))
        return replace(own, failed=0.0, stop=0.0)

    def meet(self, own: StepScalars | None = None) -> StepScalars:
        """Sum the scalars of all ranks, with what has been remembered."""
        total = own or StepScalars()
        total.failed, total.stop = total.failed + self._pending.failed, total.stop + self._pending.stop
        self._pending = StepScalars()
        message = np.array([total.loss, total.correct, total.failed, total.stop, total.count])
        all_reduce(message, comm=self.group, name="scalars")
        return StepScalars(*(float(value) for value in message))

    def average(self, weight: float | None = None) -> None:
        """Parameters become the (weighted) mean over the ranks. weight: of this rank, in any unit; None: all alike."""
        values = self.parameters.values
        if weight is None:
            all_reduce(values, comm=self.group, op="mean", name="parameters")
        else:
            total = np.array([weight])
            all_reduce(total, comm=self.group, name="weights")
            values *= values.dtype.type(weight / max(float(total[0]), 1e-30))
            all_reduce(values, comm=self.group, name="parameters")
        self.sent += 2 * (self.group.size - 1) * values.nbytes // self.group.size
        self._apart = False

    def settle(self) -> StepScalars:
        """The mean of the replicas and of their optimizers."""
        sums = self.meet()
        if self._apart and not sums.failed:
            self.combine()
            self.average_optimizers(self.group)
        return sums

    def combine(self) -> None:
        """Make one model of the replicas."""
        self.average()
