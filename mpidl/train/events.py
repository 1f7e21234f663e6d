"""What happens in a run, for those who watch it: observers of the training loop.

The loop knows no metrics, no progress bar, no signals and no pictures; it tells observers
(mpidl.train.observers has the usual ones) what has happened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mpidl.data import Reader
from mpidl.sync import StepScalars
from mpidl.task import Evaluation


@dataclass(frozen=True)
class Totals:
    """What a run has done so far, for comparisons.

    Attributes:
        seconds: Since the start of this job.
        seen: Samples over all ranks, since the first step of the run.
        sent_bytes: Bytes that this rank has sent.
    """

    seconds: float
    seen: int
    sent_bytes: int


@dataclass(frozen=True)
class RunStart:
    """The start of a job.

    Attributes:
        step: Steps that earlier jobs of this run have finished.
        ranks: Number of ranks.
        total_samples: Samples over all ranks at the end of the run.
        seen: Samples over all ranks in the finished steps.
        readers: The data sets: those of the training, then that of the tests, if there is one.
        resumed: The checkpoint that it resumes from.
    """

    step: int
    ranks: int
    total_samples: int
    seen: int
    readers: Sequence[Reader] = ()
    resumed: Path | None = None


@dataclass(frozen=True)
class StepRecord:
    """A finished step.

    Attributes:
        step: Number of finished steps.
        epoch: Of this step, from 0.
        epochs: Of the run.
        loss: Mean over the samples of the ranks that have met in this step.
        metrics: Of the batch, by name.
        lr: Learning rate.
        samples: Samples of all ranks in this step, about.
        totals: At its end.
    """

    step: int
    epoch: int
    epochs: int
    loss: float
    metrics: Mapping[str, float]
    lr: float
    samples: int
    totals: Totals


@dataclass(frozen=True)
class EvaluationRecord:
    """An evaluation on the test data.

    Attributes:
        step: Number of finished steps.
        epoch: Number of epochs begun.
        epochs: Of the run.
        result: What was found.
        totals: At its end.
    """

    step: int
    epoch: int
    epochs: int
    result: Evaluation
    totals: Totals


@dataclass(frozen=True)
class SavedRecord:
    """A checkpoint that was written.

    Attributes:
        step: Number of finished steps.
        path: Of the file.
        best: Whether it is the best so far, and best.h5 too.
    """

    step: int
    path: Path
    best: bool


@dataclass(frozen=True)
class Result:
    """Outcome of a run.

    Attributes:
        quality: The last evaluation on the test data; without one, the averages over the last
            epoch's batches as they were trained on.
        metric: What the task chooses the best checkpoint by.
        evaluated_on: Which of the two.
        epochs: Epochs begun.
        steps: Steps finished.
        seconds: Time of the loop.
        samples_per_second: Over all ranks.
        ranks: Number of ranks.
        checkpoint: The newest one.
        stopped: Whether a signal has ended the run.
    """

    quality: Evaluation
    metric: str
    evaluated_on: Literal["test", "training"]
    epochs: int
    steps: int
    seconds: float
    samples_per_second: float
    ranks: int
    checkpoint: str | None
    stopped: bool

    def record(self) -> dict[str, Any]:
        """Plain values, for --json."""
        own = {name: value for name, value in vars(self).items() if name != "quality"}
        return self.quality.record() | own


class Observer:
    """Base of observers: every event does nothing unless it is overridden.

    Events occur on every rank. An error in one ends the job.
    """

    @property
    def stop_requested(self) -> bool:
        """Whether this rank asks for the run to stop; all ranks stop at the same step."""
        return False

    def run_started(self, start: RunStart) -> None:
        """Before the first step of this job."""

    def epoch_started(self) -> None:
        """Before the first step of an epoch in this job."""

    def pass_started(self) -> None:
        """Before the forward pass of a step."""

    def pass_finished(self, own: StepScalars) -> None:
        """After the backward pass, before the exchange; `own`: this rank's scalars."""

    def step_finished(self, record: StepRecord) -> None:
        """After the update."""

    def epoch_finished(self) -> None:
        """After the last step of an epoch, before the ranks wait for each other."""

    def evaluated(self, record: EvaluationRecord) -> None:
        """After an evaluation on the test data."""

    def saved(self, record: SavedRecord) -> None:
        """After a checkpoint was written; on all ranks together."""

    def stopping(self, step: int) -> None:
        """All ranks have agreed to stop after `step` steps."""

    def run_finished(self, result: Result) -> None:
        """After the last checkpoint of a run that ended without an error."""

    def close(self) -> None:
        """At the end, also after an error."""


Observers = Sequence[Observer]
