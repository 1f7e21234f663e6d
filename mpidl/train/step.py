"""One rank's part of a training step: forward and backward passes of its micro-batches."""

from __future__ import annotations

import time
from itertools import pairwise

from mpidl.backend import Array
from mpidl.comm.context import Context
from mpidl.data import Batch, LaneSampler
from mpidl.nn import CrossEntropy, GradientsReady, LossResult, Model
from mpidl.optim import LossScaler
from mpidl.sync import StepScalars, Strategy
from mpidl.train.accumulation import TreeSum
from mpidl.train.inputs import Inputs
from mpidl.train.passes import Passes
from mpidl.train.shared_state import SharedState


class StepGradients:
    """Leaves the gradients of this rank's part of a batch in the flat buffer, and tells the strategy which are final."""

    def __init__(
        self,
        model: Model,
        inputs: Inputs,
        loss: CrossEntropy,
        sampler: LaneSampler,
        strategy: Strategy,
        scaler: LossScaler,
        context: Context,
        micro_batches: int,
        seed: int,
        graphs: str,
    ) -> None:
        self.model, self.inputs, self.loss, self.sampler = model, inputs, loss, sampler
        self.passes = Passes(
            model, loss, graphs=graphs == "on" or (graphs == "auto" and not strategy.overlaps)
        )
        self.strategy, self.scaler, self.micro_batches = strategy, scaler, micro_batches
        self.slowdown = 1.0  # for experiments: this rank takes so many times longer
        self.shared = SharedState(model, context, seed)
        whole = micro_batches % sampler.size == 0 and not strategy.reduces_micro_batches
        self.tree = TreeSum(model.parameters, micro_batches // sampler.size if whole else 1)

    def compute(self, step: int, batch: Batch, own: StepScalars) -> None:
        """Gradients summed over this rank's micro-batches; `own` gets its scalars."""
        begun = time.monotonic()
        self._compute(step, batch, own)
        if self.slowdown > 1:
            time.sleep((self.slowdown - 1) * (time.monotonic() - begun))

    def _compute(self, step: int, batch: Batch, own: StepScalars) -> None:
        cuts = self.sampler.cuts(batch.step, self.micro_batches)
        length, leaves = self.model.parameters.length, []
        parts = list(pairwise(cuts))
        staged = self._stage(batch, *parts[0])
        for index in range(len(parts)):
            self.shared.begin(step, index, len(parts))
            last = self.tree.at_last  # only then do gradients leave
            result = self._micro_batch(batch, staged, self._final if last else None)
            if not last:
                self.scaler.unscale(*self.model.parameters.storage.gradient_range(0, length))
            if index + 1 < len(parts):
                staged = self._stage(
                    batch, *parts[index + 1]
                )  # on a GPU while this one still computes
            loss, correct = (result.total, float(result.correct)) if result else (0.0, 0.0)
            leaves.append(StepScalars(loss, correct, count=parts[index][1] - parts[index][0]))
            if not last:
                self.tree.add_part(0, length)
            self.tree.advance()
        total = StepScalars.tree_sum(leaves, self.model.parameters.dtype)
        own.loss, own.correct, own.count = total.loss, total.correct, total.count

    def _final(self, start: int, stop: int) -> None:
        """Gradients [start, stop) of the last micro-batch are there."""
        self.scaler.unscale(*self.model.parameters.storage.gradient_range(start, stop))
        self.tree.add_part(start, stop)
        self.strategy.on_gradients_ready(start, stop)

    def _stage(self, batch: Batch, low: int, high: int) -> tuple[Array, Array] | None:
        """Features and labels of samples [low, high) on their way to the device; None where there are none."""
        together = self.model.needs_collective or self.model.parameters.gathers_in_passes
        if low == high and not together:
            return None
        spec = self.inputs.spec
        features = self.inputs.features(batch.arrays[spec.feature][low:high])
        return features, self.inputs.labels(batch.arrays[spec.label][low:high])

    def _micro_batch(
        self, batch: Batch, staged: tuple[Array, Array] | None, ready: GradientsReady | None
    ) -> LossResult | None:
        """Gradients of staged samples, divided by the samples of the global batch, or of this rank's part of it."""
        if staged is None:
            self.model.parameters.gradients[...] = 0
            if ready is not None:
                ready(0, self.model.parameters.length)
            return None
        self.loss.gradient_scale = self.scaler.scale
        return self.passes.run(
            *staged, batch.count if self.strategy.averages_locally else batch.global_count, ready
        )
