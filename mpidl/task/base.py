"""The task interface.

A task says what targets look like, which losses compare them with the outputs of a model, how good
a model is, and what its predictions are. Trainer, evaluation, prediction, checkpoints and plots ask
the task, and know no losses or metrics themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mpidl.data.manifest import Arrays, Field, Manifest
from mpidl.errors import ConfigError
from mpidl.nn import Forward, Loss, LossResult, Model
from mpidl.options import Section
from mpidl.task.distill import SoftLoss
from mpidl.task.metrics import Evaluation, Metric, Sums
from mpidl.task.spec import FieldSpec, InputSpec, Shape, TargetSpec


@dataclass(frozen=True)
class Scored:
    """A batch whose outputs are compared with its targets.

    Attributes:
        outputs: (n, ...) float64 on the host, in the units of the targets.
        targets: (n, ...) on the host, classes or float64.
        result: Losses.
        arrays: The fields of the batch.
    """

    outputs: NDArray[Any]
    targets: NDArray[Any]
    result: LossResult
    arrays: Arrays

    @property
    def count(self) -> int:
        """Samples."""
        return len(self.outputs)


@dataclass(frozen=True)
class Source:
    """A data set that a task looks at.

    Attributes:
        features: The input fields.
        labels: The label fields.
        layout: What a field (a, b) is, see `DataConfig`.
        where: Its place, for messages.
    """

    features: Mapping[str, Field]
    labels: Mapping[str, Field]
    layout: str
    where: str


class Task(ABC):
    """Base of tasks.

    Args:
        options: Of the class `Options`.
        spec: What the model takes of a data set.

    Attributes:
        losses: Names of the losses that it can be trained with; the first is the default.
        best: The metric that the best checkpoint is chosen by, or "loss".
        maximize: Whether the best is the largest.
        counts_correct: Whether training steps count correct samples.
        needs_label: Whether the data must have a label.
        draws: Whether an epoch trains on parts of samples, see `draw`.
        gives_tokens: Whether inputs are tokens, (t,), which a model embeds.
        soft: How outputs are compared with those of a teacher; None: they cannot be.
    """

    class Options(Section, frozen=True):
        """A task without options."""

    losses: ClassVar[tuple[str, ...]]
    best: ClassVar[str] = "loss"
    maximize: ClassVar[bool] = False
    counts_correct: ClassVar[bool] = False
    needs_label: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    gives_tokens: ClassVar[bool] = False
    soft: ClassVar[type[SoftLoss] | None] = None

    def __init__(self, options: Any, spec: InputSpec) -> None:
        self.options = options
        self.spec = spec
        self.metrics = self.make_metrics()

    # --- the data ---
    @classmethod
    @abstractmethod
    def describe_targets(cls, options: Any, data: Source) -> TargetSpec:
        """What the label fields of a data set are to this task.

        Args:
            options: Of the class `Options`.
            data: The data set.

        Raises:
            DataError: The labels are of no use for the task.
            ConfigError: A setting does not fit them.
        """

    def check(self, manifest: Manifest, where: str, *, needs_label: bool = True) -> None:
        """Refuse a data set that does not have what the model takes.

        Args:
            manifest: Of the data set.
            where: Its place, for messages.
            needs_label: Whether it must have targets too.

        Raises:
            DataError: A field is missing or different.
        """
        for field in self.spec.features:
            field.check(manifest, where)
        if needs_label:
            self.check_targets(manifest, where)

    @abstractmethod
    def check_targets(self, manifest: Manifest, where: str) -> None:
        """Refuse a data set whose labels are not those that the model was trained for.

        Raises:
            DataError: They are not.
        """

    @property
    def extra_fields(self) -> list[str]:
        """Fields that metrics read where the data set has them."""
        return []

    # --- the model ---
    @property
    def input_shape(self) -> Shape:
        """Shape of a sample for the model."""
        return self.spec.shape

    @property
    @abstractmethod
    def output_sizes(self) -> Sequence[int]:
        """Numbers of outputs to build the model with, until one fits."""

    @abstractmethod
    def fits(self, output_shape: Shape) -> bool:
        """Whether the outputs of a model can be compared with the targets."""

    def refuse_model(self, name: str, output_shape: Shape) -> ConfigError:
        """The error for a model that does not fit.

        Args:
            name: Of the model.
            output_shape: Of its last variant.
        """
        wanted = " or ".join(str((size,)) for size in self.output_sizes)
        return ConfigError(
            f"{name!r} has outputs of shape {output_shape} for a sample, but the task "
            f"{self.spec.task!r} takes {wanted}",
            where="model",
            remedy="choose another model or other options, or another task.name",
        )

    @property
    def needs_input_gradient(self) -> bool:
        """Whether training needs the gradient of the inputs of the model."""
        return False

    def through_steps(self, model: Model) -> Forward:
        """What samples pass through in training."""
        return model

    def through_samples(self, model: Model) -> Forward:
        """What samples pass through in evaluation and prediction."""
        return model

    def loss_of_sample(self, loss: Loss) -> Loss:
        """The loss of a sample, made of the chosen one."""
        return loss

    # --- batches ---
    def draw(
        self, arrays: Arrays, samples: NDArray[np.int64], place: tuple[int, int], seed: int
    ) -> Arrays:
        """What of some samples a step trains on: the same on any number of ranks.

        Args:
            arrays: The fields of the samples.
            samples: (n,) their numbers in the data set.
            place: Numbers of the epoch and of the step in it: an epoch may have a sample twice.
            seed: Of the run.
        """
        return arrays

    @property
    def input_fields(self) -> Sequence[FieldSpec]:
        """Normalizations of what `features` returns."""
        return self.spec.features

    def features(self, arrays: Arrays) -> list[NDArray[Any]]:
        """The input fields of a batch, as they were stored."""
        return [arrays[field.name] for field in self.spec.features]

    @abstractmethod
    def targets(self, arrays: Arrays) -> NDArray[Any]:
        """What the loss compares with: (n, ...) int64 classes or normalized float32."""

    # --- results ---
    def make_metrics(self) -> list[Metric]:
        """The metrics of an evaluation."""
        return []

    def scored(self, outputs: NDArray[Any], result: LossResult, arrays: Arrays) -> Scored:
        """A batch for the metrics.

        Args:
            outputs: (n, ...) of the model, on the host.
            result: Losses.
            arrays: The fields of the batch.
        """
        return Scored(outputs.astype(np.float64), self.targets(arrays), result, arrays)

    @property
    def sums(self) -> int:
        """Number of sums of all metrics, and of loss and samples."""
        return 2 + sum(metric.size for metric in self.metrics)

    def add(self, sums: Sums, scored: Scored) -> None:
        """Add a batch.

        Args:
            sums: (self.sums,) float64, changed in place.
            scored: The batch.
        """
        sums[:2] += scored.result.total, scored.count
        for metric, own in self._shared_out(sums):
            metric.add(own, scored)

    def _shared_out(self, sums: Sums) -> Iterator[tuple[Metric, Sums]]:
        """The metrics, and a view of the sums of each."""
        start = 2
        for metric in self.metrics:
            yield metric, sums[start : start + metric.size]
            start += metric.size

    def evaluation(self, sums: Sums) -> Evaluation:
        """The result, from the sums over all ranks."""
        loss, samples = float(sums[0] / sums[1]), int(sums[1])
        values: dict[str, float] = {}
        details: dict[str, Any] = {}
        for metric, own in self._shared_out(sums):
            values |= metric.values(own)
            details |= metric.details(own)
        return Evaluation(loss, samples, values, self.score(loss, values), details)

    def score(self, loss: float, metrics: Mapping[str, float]) -> float:
        """What the best checkpoint has most of."""
        value = metrics.get(self.best, loss)
        return value if self.maximize and self.best in metrics else -value

    @abstractmethod
    def predictions(self, outputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """What is written for outputs: arrays (n, ...) by name.

        Args:
            outputs: (n, ...) of the model, on the host.
        """
