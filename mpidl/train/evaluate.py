"""Evaluation over all ranks: exact sums, every sample once."""

from __future__ import annotations

import math

import numpy as np

from mpidl.comm.context import Context
from mpidl.data.reader import Reader
from mpidl.data.sampler import contiguous_batches
from mpidl.data.validate import check_values
from mpidl.nn import Loss, Model
from mpidl.optim import RunState
from mpidl.task import Evaluation, Task
from mpidl.train.inputs import Inputs


class EpochAverage:
    """Loss and accuracy over the training batches of the epoch so far.

    Args:
        task: Says whether steps count correct samples, and what is good.

    Attributes:
        seen: The average.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.seen = self._average(math.nan, 0.0, 0)

    def _average(self, loss: float, accuracy: float, samples: int) -> Evaluation:
        metrics = step_metrics(self.task, accuracy)
        return Evaluation(loss, samples, metrics, self.task.score(loss, metrics))

    def add(self, loss: float, correct: float, count: int, *, first: bool) -> None:
        """Add a batch.

        Args:
            loss: Sum over its samples.
            correct: Number of correct samples.
            count: Number of samples.
            first: Whether it is the first batch of an epoch.
        """
        before = 0 if first else self.seen.samples
        samples = before + count
        total_loss = (self.seen.loss * before if before else 0.0) + loss
        total_correct = self.seen.metrics.get("accuracy", 0.0) * before + correct
        self.seen = self._average(total_loss / samples, total_correct / samples, samples)

    def state(self) -> RunState:
        """The average so far."""
        state = RunState()
        state.set_numbers(
            own=True,
            loss=self.seen.loss,
            accuracy=self.seen.metrics.get("accuracy", 0.0),
            samples=self.seen.samples,
        )
        return state

    def load_state(self, state: RunState) -> None:
        """Resume from a saved average."""
        loss = state.take_number("loss", math.nan)
        accuracy = state.take_number("accuracy", 0.0)
        self.seen = self._average(loss, accuracy, int(state.take_number("samples", 0)))


def step_metrics(task: Task, accuracy: float) -> dict[str, float]:
    """The metrics of a training batch, besides the loss."""
    return {"accuracy": accuracy} if task.counts_correct else {}


def evaluate(
    model: Model, loss: Loss, inputs: Inputs, reader: Reader, context: Context, batch: int
) -> Evaluation:
    """Evaluate `model` on all samples, each rank on a contiguous part. Collective.

    Args:
        model: With the parameters to evaluate.
        loss: Of the run.
        inputs: Turns samples into inputs of the model; its task has the metrics.
        reader: The data set; must not read collectively.
        context: The ranks.
        batch: Samples at a time on one rank.
    """
    task = inputs.task
    through = task.through_samples(model)
    sums = np.zeros(task.sums)
    with context.fail_together("evaluating"):
        pieces = list(contiguous_batches(len(reader), context.rank, context.size, batch))
        for piece in pieces:
            arrays = reader.read([piece])
            check_values(reader, arrays, [piece])
            outputs, _ = through.forward(inputs.features(arrays))
            result = loss(outputs, inputs.targets(arrays), 1)
            task.add(sums, task.scored(model.ops.to_host(outputs), result, arrays))
        if model.parameters.gathers_in_passes:
            # all ranks gather parameters together in each pass: those with fewer batches join in
            most = math.ceil(math.ceil(len(reader) / context.size) / batch)
            for _ in range(most - len(pieces)):
                through.forward(inputs.features(reader.read([(0, 1)])))
    total = np.empty_like(sums)
    context.comm.Allreduce(sums, total)
    return task.evaluation(total)
