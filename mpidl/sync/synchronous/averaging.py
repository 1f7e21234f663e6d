"""What strategies share whose replicas differ for some steps: averaging models and optimizers."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np

from mpidl.backend import Array
from mpidl.collectives import all_reduce
from mpidl.comm.context import Context
from mpidl.nn import FlatParameters
from mpidl.optim import RunState
from mpidl.options import Section
from mpidl.sync.strategy import RunInfo, StepScalars
from mpidl.sync.synchronous.strategy import SynchronousStrategy


class ParameterAveraging(SynchronousStrategy):
    """Every rank has a model and an optimizer of its own.

    Failures and stop requests are remembered until the ranks meet.
    """

    averages_locally = True

    def __init__(
        self,
        parameters: FlatParameters,
        context: Context,
        options: Section | None = None,
        run: RunInfo | None = None,
    ) -> None:
        super().__init__(parameters, context, options, run)
        # parameters may differ; `replicas_differ` also where only the optimizers do
        self._diverged = False
        self._pending = StepScalars()

    def remember(self, scalars: StepScalars) -> StepScalars:
        """Keep failures and stop requests for the next meeting.

        Returns:
            The scalars of a step in which the ranks do not meet.
        """
        self._pending.add(StepScalars(failed=scalars.failed, stop=scalars.stop))
        return replace(scalars, failed=0.0, stop=0.0)

    def meet(self, scalars: StepScalars) -> StepScalars:
        """Sum the scalars of all ranks, with what has been remembered. Collective."""
        self._pending.add(scalars)
        message = np.array(astuple(self._pending))
        self._pending = StepScalars()
        all_reduce(message, comm=self.group, name="scalars")
        return StepScalars(*message.tolist())

    def average(self, weight: float | None = None) -> None:
        """Parameters become the mean over the ranks. Collective.

        Args:
            weight: Of this rank, in any unit; None: all ranks alike.
        """
        values = self.parameters.values
        if weight is None:
            all_reduce(values, comm=self.group, op="mean", name="parameters")
        else:
            total = np.array([weight])
            all_reduce(total, comm=self.group, name="weights")
            values *= values.dtype.type(weight / max(float(total[0]), 1e-30))
            all_reduce(values, comm=self.group, name="parameters")
        self.count_all_reduce(values, self.group)
        self._diverged = False

    def synchronize(self) -> StepScalars:
        """The mean of the replicas and of their optimizers."""
        sums = self.meet(StepScalars())
        if sums.failed:
            return sums
        if self._diverged:
            self.combine()
        if self.replicas_differ:
            self.average_optimizers()
            self.replicas_differ = False
        return sums

    def diverge(self) -> None:
        """This rank's optimizer has taken a step of its own."""
        self.replicas_differ = True
        self._diverged = True

    def combine(self) -> None:
        """Make one model of the replicas. Collective."""
        self.average()

    # --- checkpoints ---
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
