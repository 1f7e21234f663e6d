"""Evaluation over all ranks: exact sums, every sample once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mpidl.comm.context import Context
from mpidl.data.reader import Reader
from mpidl.data.sampler import contiguous_batches
from mpidl.data.validate import check_values
from mpidl.nn import Loss, Model
from mpidl.optim import RunState
from mpidl.train.inputs import Inputs


@dataclass(frozen=True)
class Evaluation:
    """Means over a data set.

    Attributes:
        loss: Mean loss of the samples.
        accuracy: Share of correct samples; None where the targets are no classes.
        samples: Their number.
    """

    loss: float
    accuracy: float | None
    samples: int

    @property
    def score(self) -> float:
        """What the best checkpoint has most of: accuracy, or without classes the negative loss."""
        return self.accuracy if self.accuracy is not None else -self.loss

    def describe(self) -> str:
        """In words: "accuracy 91.80 %, loss 0.2310"."""
        return describe(self.loss, self.accuracy)


def describe(loss: float, accuracy: float | None) -> str:
    """Accuracy, if there is one, and loss in words."""
    text = f"loss {loss:.4f}"
    return text if accuracy is None else f"accuracy {100 * accuracy:.2f} %, {text}"


class EpochAverage:
    """Loss and accuracy over the training batches of the epoch so far.

    Args:
        classes: Whether the targets are classes.

    Attributes:
        seen: The average.
    """

    def __init__(self, classes: bool = True) -> None:
        self.classes = classes
        self.seen = self._average(math.nan, 0.0, 0)

    def _average(self, loss: float, accuracy: float, samples: int) -> Evaluation:
        return Evaluation(loss, accuracy if self.classes else None, samples)

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
        total_correct = (self.seen.accuracy or 0.0) * before + correct
        self.seen = self._average(total_loss / samples, total_correct / samples, samples)

    def state(self) -> RunState:
        """The average so far."""
        state = RunState()
        state.set_numbers(
            own=True,
            loss=self.seen.loss,
            accuracy=self.seen.accuracy or 0.0,
            samples=self.seen.samples,
        )
        return state

    def load_state(self, state: RunState) -> None:
        """Resume from a saved average."""
        loss = state.take_number("loss", math.nan)
        accuracy = state.take_number("accuracy", 0.0)
        self.seen = self._average(loss, accuracy, int(state.take_number("samples", 0)))


def evaluate(
    model: Model, loss: Loss, inputs: Inputs, reader: Reader, context: Context, batch: int
) -> Evaluation:
    """Evaluate `model` on all samples, each rank on a contiguous part. Collective.

    Args:
        model: With the parameters to evaluate.
        loss: Of the run.
        inputs: Turns samples into inputs of the model.
        reader: The data set; must not read collectively.
        context: The ranks.
        batch: Samples at a time on one rank.
    """
    sums = np.zeros(3)
    spec = inputs.spec
    with context.fail_together("evaluating"):
        pieces = list(contiguous_batches(len(reader), context.rank, context.size, batch))
        for piece in pieces:
            arrays = reader.read([piece])
            check_values(reader, arrays, [piece])
            outputs, _ = model.forward(inputs.features(arrays[spec.feature]))
            result = loss(outputs, inputs.targets(arrays[spec.label]), 1)
            sums += result.total, result.correct, len(outputs)
        if model.parameters.gathers_in_passes:
            # all ranks gather parameters together in each pass: those with fewer batches join in
            most = math.ceil(math.ceil(len(reader) / context.size) / batch)
            for _ in range(most - len(pieces)):
                model.forward(inputs.features(reader.read([(0, 1)])[spec.feature]))
    total = np.empty_like(sums)
    context.comm.Allreduce(sums, total)
    accuracy = float(total[1] / total[2]) if loss.targets == "classes" else None
    return Evaluation(float(total[0] / total[2]), accuracy, int(total[2]))
