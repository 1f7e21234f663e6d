"""What strategies share whose replicas differ between meetings: the average of parameters and optimizer state."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mpidl.backend import Array
from mpidl.collectives import Group, all_reduce, broadcast
from mpidl.comm.context import Context
from mpidl.nn import FlatParameters
from mpidl.optim import RunState
from mpidl.sync.strategy import StepScalars
from mpidl.sync.synchronous.strategy import SynchronousStrategy


class ParameterAveraging(SynchronousStrategy):
    """Every rank has a model and an optimizer of its own.

    Failures are remembered until the ranks meet.
    """

    averages_locally = True

    def __init__(self, parameters: FlatParameters, context: Context, name: str) -> None:
        super().__init__(parameters)
        self.context = context
        self.group = Group(context.comm, name=name)
        self._diverged = False  # whether parameters may differ; `apart`: they or the optimizers
        self._pending = StepScalars()

    def start(self) -> None:
        broadcast(self.parameters.values, comm=self.group, name="parameters")

    def remember(self, own: StepScalars) -> StepScalars:
        """Keep failures and stops for the next meeting; returns the scalars of a step in which the ranks do not meet."""
        self._pending.add(StepScalars(failed=own.failed, stop=own.stop))
        return replace(own, failed=0.0, stop=0.0)

    def meet(self, own: StepScalars | None = None) -> StepScalars:
        """Sum the scalars of all ranks, with what has been remembered."""
        total = own or StepScalars()
        total.failed, total.stop = (
            total.failed + self._pending.failed,
            total.stop + self._pending.stop,
        )
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
        self._diverged = False

    def synchronize(self) -> StepScalars:
        """The mean of the replicas and of their optimizers."""
        sums = self.meet()
        if sums.failed:
            return sums
        if self._diverged:
            self.combine()
        if self.replicas_differ:
            self.average_optimizers(self.group)
            self.replicas_differ = False
        return sums

    def diverge(self) -> None:
        """This rank's optimizer has taken a step of its own."""
        self.replicas_differ = self._diverged = True

    def combine(self) -> None:
        """Make one model of the replicas."""
        self.average()

    def state(self) -> RunState:
        """Between averages also this rank's parameters and optimizer, copied."""
        state = super().state()
        if self.replicas_differ:
            to_host = self.parameters.ops.to_host
            state.own |= {name: np.array(to_host(array)) for name, array in self._replica().items()}
            state.own["diverged"] = np.array([float(self._diverged)])
        return state

    def load_state(self, state: RunState) -> None:
        super().load_state(state)
        replica = self._replica()
        self.replicas_differ = replica.keys() <= state.own.keys()
        if self.replicas_differ:
            for name, array in replica.items():
                array[...] = self.parameters.ops.to_device(state.own.pop(name))
        self._diverged = bool(state.take_number("diverged", 0.0))

    def _replica(self) -> dict[str, Array]:
        buffers = self.optimizer.state if self.optimizer is not None else {}
        return {"parameters": self.parameters.values} | {
            f"optimizer.{name}": array for name, array in buffers.items()
        }
