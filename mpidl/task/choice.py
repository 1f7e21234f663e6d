"""The section [task], and the choice of a task by the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np

from mpidl.data.manifest import Field
from mpidl.errors import ConfigError
from mpidl.nn import LOSSES
from mpidl.options import OneOf
from mpidl.registry import Choice, Registry
from mpidl.task.base import Task
from mpidl.task.distill import DistillConfig
from mpidl.task.spec import InputSpec

AUTO = "auto"

# What a model is trained for: one line each.
TASKS: Registry[type[Task]] = Registry(
    "task",
    "task.name",
    {
        "classification": "mpidl.task.classification:Classification",
        "multilabel": "mpidl.task.multilabel:Multilabel",
        "regression": "mpidl.task.regression:Regression",
        "segmentation": "mpidl.task.segmentation:Segmentation",
        "rollout": "mpidl.task.rollout:Rollout",
        "language_model": "mpidl.task.language_model:LanguageModel",
    },
)


class TaskConfig(Choice, frozen=True):
    """What the model is trained for, with the task's own options in the same section.

    Attributes:
        name: "auto": the label decides. One class a sample: classification; real numbers:
            regression; a class for each pixel of a field: segmentation; tokens without a label:
            language_model.
        distill: A trained model to learn from besides the targets, see docs/tasks.md.
    """

    REGISTRY: ClassVar[Registry[Any]] = TASKS
    NONE: ClassVar[str] = AUTO

    name: Annotated[str, OneOf(TASKS, AUTO)] = AUTO
    distill: DistillConfig = DistillConfig()

    def decide(
        self, loss: str, features: Mapping[str, Field], labels: Mapping[str, Field]
    ) -> tuple[str, Any]:
        """Name and options of the task for a data set.

        Args:
            loss: Name of the loss, or "auto".
            features: The input fields.
            labels: The label fields.
        """
        if self.name != AUTO:
            return self.name, self.options
        name = _decide(loss, features, labels)
        return name, TASKS[name].Options()

    def create(self, spec: InputSpec) -> Task:
        """The task of a run whose data have been looked at."""
        options = self.options if self.name != AUTO else TASKS[spec.task].Options()
        return TASKS[spec.task](options, spec)


def _decide(loss: str, features: Mapping[str, Field], labels: Mapping[str, Field]) -> str:
    if not labels:
        return "language_model"
    if loss != AUTO:
        kind = LOSSES[loss].targets
    else:
        real = all(np.dtype(field.dtype).kind == "f" for field in labels.values())
        kind = "values" if real else "classes"
    if kind == "values":
        return "regression"
    (label,) = list(labels.values())[:1]
    spatial = {field.shape[: len(label.shape)] for field in features.values()}
    pixels = len(label.shape) > 1 and spatial == {label.shape}
    return "segmentation" if pixels else "classification"


def check_loss(task: str, loss: str) -> None:
    """Refuse a loss that the task cannot be trained with.

    Raises:
        ConfigError: It cannot.
    """
    if loss != AUTO and loss not in TASKS[task].losses:
        fitting = ", ".join(TASKS[task].losses)
        kind = "classes" if LOSSES[loss].targets == "classes" else "real values"
        raise ConfigError(
            f"the loss {loss!r} compares {kind}: the task {task!r} takes {fitting}",
            where="loss.name",
            remedy=f"choose one of {fitting}, or another task.name",
        )
