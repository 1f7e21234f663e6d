"""One rank's part of a training step: forward and backward passes of its micro-batches."""

from __future__ import annotations

from itertools import pairwise

from mpidl.comm.context import Context
from mpidl.data import Batch, LaneSampler
from mpidl.nn import GradientsReady, Model, SoftmaxCrossEntropy
from mpidl.optim import LossScaler
from mpidl.sync import StepScalars, Strategy
from mpidl.train.accumulate import TreeSum
from mpidl.train.inputs import Inputs
from mpidl.train.shared_state import SharedState


class StepGradients:
    """Leaves the gradients of this rank's part of a batch in the flat buffer, and tells the strategy which are final."""

    def __init__(
        self,
        model: Model,
        inputs: Inputs,
        loss: SoftmaxCrossEntropy,
        sampler: LaneSampler,
        strategy: Strategy,
        scaler: LossScaler,
        context: Context,
        micro_batches: int,
        seed: int,
    ) -> None:
        self.model, self.inputs, self.loss, self.sampler = model, inputs, loss, sampler
        self.strategy, self.scaler, self.micro_batches = strategy, scaler, micro_batches
        self.shared = SharedState(model, context, seed)
        whole = micro_batches % context.size == 0
        self.tree = TreeSum(model.parameters, micro_batches // context.size if whole else 1)

    def compute(self, step: int, batch: Batch, own: StepScalars) -> None:
        """Gradients summed over this rank's micro-batches; `own` gets its scalars."""
        cuts = self.sampler.cuts(batch.step, self.micro_batches)
        length, whole = self.model.parameters.length, len(self.model.parameters.message)
        for index, (low, high) in enumerate(pairwise(cuts)):
            self.shared.begin(step, index, len(cuts) - 1)
            last = self.tree.at_last  # only then do gradients leave
            loss, correct = self._micro_batch(batch, low, high, self._final if last else None)
            if not last:
                self.scaler.unscale(0, length)
            self.strategy.note(StepScalars(loss, correct, stop=own.stop if low == cuts[0] else 0.0))
            self.tree.add_part(length if last else 0, whole)
            self.tree.advance()
            own.loss, own.correct = own.loss + loss, own.correct + correct

    def _final(self, start: int, stop: int) -> None:
        """Gradients [start, stop) of the last micro-batch are there."""
        self.scaler.unscale(start, stop)
        self.tree.add_part(start, stop)
        self.strategy.ready(start, stop)

    def _micro_batch(self, batch: Batch, low: int, high: int, ready: GradientsReady | None) -> tuple[float, float]:
        """Gradients of samples [low, high) of the batch, divided by its samples; returns the sums of loss and hits."""
        if low == high and not self.model.synchronises:
            self.model.parameters.gradients[...] = 0
            if ready is not None:
                ready(0, self.model.parameters.length)
            return 0.0, 0.0
        x = self.inputs.features(batch.arrays[self.inputs.spec.feature][low:high])
        labels = self.inputs.labels(batch.arrays[self.inputs.spec.label][low:high])
        logits, backward = self.model.forward(x, train=True)
        self.loss.gradient_scale = self.scaler.scale
        result = self.loss(logits, labels, batch.global_count)
        backward(result.gradient, ready)
        return result.total, float(result.correct)
