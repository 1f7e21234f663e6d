"""Classification: one class for each sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.data.manifest import Arrays, Field, Manifest
from mpidl.errors import DataError
from mpidl.options import NotNegative, Section
from mpidl.task.base import Source, Task
from mpidl.task.distill import SoftClasses
from mpidl.task.metrics import Accuracy, ConfusionMatrix, Metric, TopK
from mpidl.task.spec import OTHER_DATA, FieldSpec, Shape, TargetSpec

COUNTED = 1000  # classes of a confusion matrix; more would be megabytes for each evaluation


class ClassTask(Task):
    """Base of tasks whose outputs are logits of classes along the last axis."""

    losses = ("cross_entropy",)
    maximize = True
    soft = SoftClasses

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.spec.target.classes or 0

    @property
    def output_sizes(self) -> Sequence[int]:
        return [self.classes]

    def predictions(self, outputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        probability = softmax(outputs)
        return {"label": probability.argmax(axis=-1), "probability": probability}


class Classification(ClassTask):
    """One class for each sample.

    Outputs are logits (n, classes); predictions are probabilities and the most probable class.
    """

    class Options(Section, frozen=True):
        """Options of classification.

        Attributes:
            top_k: Also report how often the class is among the k most probable; 0: do not.
        """

        top_k: NotNegative = 0

    best = "accuracy"
    counts_correct = True

    @classmethod
    def describe_targets(cls, options: Any, data: Source) -> TargetSpec:
        where = data.where
        name, field = one_label(data.labels, "classification", where)
        refuse_real_labels(field, name, where)
        check_one_class(field, name, where)
        return TargetSpec(
            (FieldSpec(name, field.shape),), count_classes(field, name, where), field.class_names
        )

    def check_targets(self, manifest: Manifest, where: str) -> None:
        (own,) = self.spec.target.fields
        label = manifest.fields.get(own.name)
        if label is not None:
            check_one_class(label, own.name, where)
        check_classes(self.spec.target, label, where)

    def fits(self, output_shape: Shape) -> bool:
        return output_shape == (self.classes,)

    def targets(self, arrays: Arrays) -> NDArray[Any]:
        return arrays[self.spec.target.fields[0].name].astype(np.int64)

    def make_metrics(self) -> list[Metric]:
        metrics: list[Metric] = [Accuracy()]
        if self.options.top_k:
            metrics.append(TopK(self.options.top_k))
        if self.classes <= COUNTED:
            metrics.append(ConfusionMatrix(self.classes))
        return metrics


def softmax(logits: NDArray[Any]) -> NDArray[np.float32]:
    """Probabilities along the last axis."""
    # classes first: NumPy reduces a short last axis ten times as slowly as a first one
    rows = logits.reshape(-1, logits.shape[-1])
    scores = rows.T.astype(np.float64, order="C")
    scores -= scores.max(axis=0)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=0)
    shares: NDArray[np.float32] = scores.T.astype(np.float32, order="C")
    return shares.reshape(logits.shape)


def is_real(field: Field) -> bool:
    """Whether a field holds real numbers."""
    return np.dtype(field.dtype).kind == "f"


def one_label(fields: Mapping[str, Field], task: str, where: str) -> tuple[str, Field]:
    """The only label field.

    Raises:
        DataError: There are several.
    """
    if len(fields) != 1:
        raise DataError(
            f"the task {task!r} takes one label, not {len(fields)}: {', '.join(fields)}",
            where=where,
            remedy="name one with data.label",
        )
    return next(iter(fields.items()))


def refuse_real_labels(field: Field, name: str, where: str) -> None:
    """Refuse a label that holds no classes."""
    if is_real(field):
        raise DataError(
            f"the label {name!r} holds real numbers ({field.dtype}), but cross_entropy compares "
            "classes",
            where=where,
            remedy='for a regression set task.name = "regression"; for classes shard whole numbers '
            "from 0, or words",
        )


def check_one_class(field: Field, name: str, where: str) -> None:
    """Refuse a label with more than one number for a sample."""
    if math.prod(field.shape) != 1:
        raise DataError(
            f"the label {name!r} has the shape {field.shape}, but a classifier learns one class "
            "for each sample",
            where=where,
            remedy="shard one class for each sample, or choose another task.name: segmentation "
            "(a class for each pixel), multilabel (several labels of 0 or 1) or regression",
        )


def count_classes(field: Field, name: str, where: str) -> int:
    """The number of classes of a label.

    Raises:
        DataError: They were not counted.
    """
    if field.classes:
        return field.classes
    raise DataError(
        f"the field {name!r} was not sharded as a label, so that its classes were not counted",
        where=where,
        remedy=f"shard the data again with --label {name}",
    )


def check_classes(target: TargetSpec, label: Field | None, where: str) -> None:
    """Refuse a label with classes that the model does not know."""
    (own,) = target.fields
    classes = target.classes or 0
    if label is None or label.shape != own.shape or is_real(label):
        found = "no such field" if label is None else f"{label.dtype} of shape {label.shape}"
    elif (label.classes or 0) > classes:
        found = str(label.classes)
    else:
        _check_class_names(target, label, where)
        return
    raise DataError(
        f"the model knows {classes} classes in {own.name!r}, the data set has {found}",
        where=where,
        remedy=OTHER_DATA,
    )


def _check_class_names(target: TargetSpec, label: Field, where: str) -> None:
    """Words are numbered in each data set on its own."""
    ours, theirs = target.class_names, label.class_names
    if not ours or not theirs or ours == theirs:
        return
    pairs = enumerate(zip_longest(ours, theirs, fillvalue=None))
    number, (own, other) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
    words = ["nothing" if name is None else repr(name) for name in (own, other)]
    raise DataError(
        f"class {number} of {target.names!r} is {words[1]} here, but {words[0]} in the training "
        "data",
        where=where,
        remedy="shard both from files with the same classes, or write the labels as numbers",
    )
