"""Local SGD: every rank takes several steps on its own, then the parameters are averaged."""

from __future__ import annotations

from typing import Annotated, Any

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
    """Local steps between averages of the parameters (McMahan et al., 2017; Stich, 2019).

    Averages are weighted by the samples that each rank has seen. Post-local SGD averages gradients
    in every step first, and begins local steps later (Lin et al., 2020). Slow momentum treats the
    change between two averages as a gradient, with a momentum of its own (SlowMo: Wang et al.,
    2020).

    Attributes:
        start_step: The first local step of the run; before it gradients are averaged.
        count: Steps of the run so far.
        averages: Done so far.
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

    options: Options

    def __init__(
        self,
        parameters: FlatParameters,
        context: Context,
        options: Section | None = None,
        run: RunInfo | None = None,
    ) -> None:
        super().__init__(parameters, context, options, run)
        self.start_step = int(self.options.start_epoch * self.run.epoch_steps)
        self.count = 0
        self.averages = 0
        self._samples = 0.0  # of this rank since the last average
        slow = self.options.slow_momentum != 0 or self.options.slow_rate != 1
        self._slow = SlowMomentum(parameters) if slow else None

    def start(self) -> None:
        super().start()
        if self._slow is not None:
            self._slow.restart()

    def step(self, scalars: StepScalars, update: Update) -> StepScalars:
        self.count += 1
        if self.count <= self.start_step:
            return self._averaged_step(scalars, update)
        if not scalars.failed:
            update()
        self.diverge()
        self._samples += scalars.count
        if (self.count - self.start_step) % self.options.steps:
            return self.remember(scalars)
        sums = self.meet(scalars)
        if not sums.failed:
            self.combine()
        return sums

    def _averaged_step(self, scalars: StepScalars, update: Update) -> StepScalars:
        """A step with averaged gradients.

        They are weighted by samples, since each rank has divided by its own.
        """
        sums = self.meet(scalars)
        if not sums.failed:
            gradients = self.parameters.gradients
            gradients *= gradients.dtype.type(scalars.count / max(sums.count, 1.0))
            all_reduce(gradients, comm=self.group, name="gradients")
            self.count_all_reduce(gradients, self.group)
            update()
            if self._slow is not None:
                self._slow.restart()
        return sums

    def combine(self) -> None:
        self.average(self._samples)
        self._samples = 0.0
        self.averages += 1
        if self._slow is not None:
            self._slow.step(self.options.slow_momentum, self.options.slow_rate)

    # --- checkpoints ---
    def _slow_buffers(self) -> dict[str, Array]:
        if self._slow is None:
            return {}
        # where the replicas are equal, they are what they were after the last average
        average = {"average": self._slow.before} if self.replicas_differ else {}
        return {"slow_momentum": self._slow.momentum} | average

    def state(self) -> RunState:
        """Also steps, the samples since the last average, and slow momentum."""
        state, to_host = super().state(), self.parameters.ops.to_host
        state.set_numbers(count=self.count, averages=self.averages)
        state.shared |= {
            name: np.array(to_host(array)) for name, array in self._slow_buffers().items()
        }
        if self.replicas_differ:
            state.own["samples"] = np.array([self._samples])
        return state

    def load_state(self, state: RunState) -> None:
        super().load_state(state)
        # of a run that had another strategy so far, the steps are known from its optimizer
        before = self.optimizer.count if self.optimizer is not None else self.count
        self.count = int(state.take_number("count", before))
        self.averages = int(state.take_number("averages", self.averages))
        self._samples = state.take_number("samples", 0.0)
        for name, array in self._slow_buffers().items():
            saved = state.take(name)
            if saved is not None:
                array[...] = self.parameters.ops.to_device(saved)
        state.take("average")  # without the replicas it has no meaning

    def report(self) -> dict[str, Any]:
        return super().report() | {"averages": self.averages}


class SlowMomentum:
    """Momentum of the change of the parameters from one average to the next.

    Attributes:
        momentum: (n,).
        before: (n,) the parameters after the last average.
    """

    def __init__(self, parameters: FlatParameters) -> None:
        self.parameters = parameters
        self.momentum: Array = parameters.ops.xp.zeros_like(parameters.values)
        self.before: Array = parameters.ops.xp.zeros_like(parameters.values)

    def restart(self) -> None:
        """The next change counts from the parameters as they are now."""
        self.before[...] = self.parameters.values

    def step(self, decay: float, rate: float) -> None:
        """Replace the average of the replicas by a step from the average before it."""
        values = self.parameters.values
        self.before -= values  # the change, backwards
        self.momentum *= self.momentum.dtype.type(decay)
        self.momentum += self.before
        self.before += values
        self.before -= self.momentum * self.momentum.dtype.type(rate)
        values[...] = self.before
