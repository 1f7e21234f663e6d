"""Local SGD: every rank takes several steps on its own, then the parameters are averaged (McMahan et al., 2017; Stich, 2019).

Post-local SGD averages gradients in every step first, and begins local steps later (Lin et al., 2020). Slow momentum treats the
change between two averages as a gradient, with a momentum of its own (SlowMo: Wang et al., 2020).
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from msgspec import Meta

from mpidl.backend import Array
from mpidl.collectives import all_reduce
from mpidl.comm.context import Context
from mpidl.nn import FlatParameters
from mpidl.optim import RunState
from mpidl.options import LARGEST, Positive, Rate, Section, Share
from mpidl.sync.strategy import RunInfo, StepScalars
from mpidl.sync.synchronous.averaging import ParameterAveraging
from mpidl.sync.synchronous.strategy import Update


class LocalSGD(ParameterAveraging):
    """steps: local steps between averages. start_step: the first local step of the run; before it gradients are averaged.

    slow_momentum, slow_rate: 0 and 1 are plain averaging. Averages are weighted by the samples that each rank has seen.
    """

    class Options(Section, frozen=True):
        """Options of local_sgd.

        Attributes:
            steps: Local steps between averages.
            start_epoch: Before it gradients are averaged in each step (post-local SGD).
            slow_momentum: Momentum of the change between averages (SlowMo).
            slow_rate: Rate of the change between averages (SlowMo).
        """

        steps: Positive = 8
        start_epoch: Annotated[float, Meta(ge=0, le=LARGEST)] = 0.0
        slow_momentum: Share = 0.0
        slow_rate: Rate = 1.0

    @classmethod
    def create(
        cls, options: Options, parameters: FlatParameters, context: Context, run: RunInfo
    ) -> LocalSGD:
        """The strategy with `options`. Collective."""
        return cls(
            parameters,
            context,
            steps=options.steps,
            start_step=int(options.start_epoch * run.epoch_steps),
            slow_momentum=options.slow_momentum,
            slow_rate=options.slow_rate,
        )

    def __init__(
        self,
        parameters: FlatParameters,
        context: Context,
        *,
        steps: int = 8,
        start_step: int = 0,
        slow_momentum: float = 0.0,
        slow_rate: float = 1.0,
    ) -> None:
        super().__init__(parameters, context, "local SGD")
        self.steps, self.start_step, self.slow_momentum, self.slow_rate = (
            steps,
            start_step,
            slow_momentum,
            slow_rate,
        )
        self.count, self._seen, self.averages = 0, 0.0, 0
        xp = parameters.ops.xp
        self._slow = xp.zeros_like(parameters.values) if slow_momentum or slow_rate != 1 else None
        self._before = xp.zeros_like(parameters.values) if self._slow is not None else None

    def start(self) -> None:
        super().start()
        if self._before is not None:
            self._before[...] = self.parameters.values

    def step(self, scalars: StepScalars, update: Update) -> StepScalars:
        self.count += 1
        if self.count <= self.start_step:
            return self._together(scalars, update)
        if not scalars.failed:
            update()
        self.diverge()
        self._seen += scalars.count
        if (self.count - self.start_step) % self.steps:
            return self.remember(scalars)
        sums = self.meet(scalars)
        if not sums.failed:
            self.combine()
        return sums

    def _together(self, scalars: StepScalars, update: Update) -> StepScalars:
        """A step with averaged gradients; weighted by samples, since each rank has divided by its own."""
        sums = self.meet(scalars)
        if not sums.failed:
            gradients = self.parameters.gradients
            gradients *= gradients.dtype.type(scalars.count / max(sums.count, 1.0))
            all_reduce(gradients, comm=self.group, name="gradients")
            self.sent += 2 * (self.group.size - 1) * gradients.nbytes // self.group.size
            update()
            if self._before is not None:
                self._before[...] = self.parameters.values
        return sums

    def combine(self) -> None:
        self.average(self._seen)
        self._seen, self.averages = 0.0, self.averages + 1
        if self._slow is None or self._before is None:
            return
        values = self.parameters.values
        self._before -= values  # how far the average has come, backwards
        self._slow *= self._slow.dtype.type(self.slow_momentum)
        self._slow += self._before
        self._before += values
        self._before -= self._slow * self._slow.dtype.type(self.slow_rate)
        values[...] = self._before

    def _slow_buffers(self) -> dict[str, Array]:
        if self._slow is None or self._before is None:
            return {}
        # where the replicas are equal, they are what they were after the last average
        return {"slow_momentum": self._slow} | (
            {"average": self._before} if self.replicas_differ else {}
        )

    def state(self) -> RunState:
        """Also steps, the samples since the last average, and slow momentum."""
        state, to_host = super().state(), self.parameters.ops.to_host
        state.set_numbers(count=self.count, averages=self.averages)
        state.shared |= {
            name: np.array(to_host(array)) for name, array in self._slow_buffers().items()
        }
        if self.replicas_differ:
            state.own["samples"] = np.array([self._seen])
        return state

    def load_state(self, state: RunState) -> None:
        super().load_state(state)
        before = (
            self.optimizer.count if self.optimizer is not None else self.count
        )  # of a run with another strategy so far
        self.count = int(state.take_number("count", before))
        self.averages = int(state.take_number("averages", self.averages))
        self._seen = state.take_number("samples", 0.0)
        for name, array in self._slow_buffers().items():
            saved = state.take(name)
            if saved is not None:
                array[...] = self.parameters.ops.to_device(saved)
        state.take("average")  # without the replicas it has no meaning

    def report(self) -> dict[str, object]:
        return super().report() | {"averages": self.averages}
