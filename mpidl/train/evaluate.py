"""Evaluation over all ranks: exact sums, every sample once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mpidl.comm.context import Context
from mpidl.data.reader import Reader
from mpidl.data.sampler import contiguous_batches
from mpidl.data.validate import check_values
from mpidl.nn import CrossEntropy, Model
from mpidl.optim import RunState
from mpidl.train.inputs import Inputs


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and accuracy over a data set."""

    loss: float
    accuracy: float
    samples: int


class EpochAverage:
    """Loss and accuracy over the training batches of the epoch so far."""

    def __init__(self) -> None:
        self.seen = Evaluation(math.nan, 0.0, 0)

    def add(self, loss: float, correct: float, count: int, *, first: bool) -> None:
        """Sums over a batch of `count` samples; first: of an epoch."""
        before = 0 if first else self.seen.samples
        seen = before + count
        total_loss = (self.seen.loss * before if before else 0.0) + loss
        self.seen = Evaluation(
            total_loss / seen, (self.seen.accuracy * before + correct) / seen, seen
        )

    def state(self) -> RunState:
        """The sums so far."""
        state = RunState()
        state.set_numbers(
            own=True, loss=self.seen.loss, accuracy=self.seen.accuracy, samples=self.seen.samples
        )
        return state

    def load_state(self, state: RunState) -> None:
        """Go on with saved sums."""
        loss, accuracy = state.take_number("loss", math.nan), state.take_number("accuracy", 0.0)
        self.seen = Evaluation(loss, accuracy, int(state.take_number("samples", 0)))


def evaluate(
    model: Model,
    loss: CrossEntropy,
    inputs: Inputs,
    reader: Reader,
    context: Context,
    batch: int,
) -> Evaluation:
    """Mean loss and accuracy of `model` over all samples, each rank its contiguous part. Collective.

    batch: samples at a time on one rank. reader: must not read collectively.
    """
    sums = np.zeros(3)
    with context.fail_together("evaluating"):
        pieces = list(contiguous_batches(len(reader), context.rank, context.size, batch))
        for piece in pieces:
            arrays = reader.read([piece])
            check_values(reader, arrays, [piece])
            logits, _ = model.forward(inputs.features(arrays[inputs.spec.feature]))
            result = loss(logits, inputs.labels(arrays[inputs.spec.label]), 1)
            sums += result.total, result.correct, len(logits)
        if model.parameters.gathers_in_passes:  # all ranks run equally many
            most = math.ceil(math.ceil(len(reader) / context.size) / batch)
            for _ in range(most - len(pieces)):
                model.forward(inputs.features(reader.read([(0, 1)])[inputs.spec.feature]))
    total = np.empty_like(sums)
    context.comm.Allreduce(sums, total)
    return Evaluation(float(total[0] / total[2]), float(total[1] / total[2]), int(total[2]))
