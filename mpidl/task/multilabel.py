"""Multilabel classification: several labels of 0 or 1 for each sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.data.manifest import Arrays, Manifest
from mpidl.errors import DataError
from mpidl.options import Fraction, Section
from mpidl.task.base import Source, Task
from mpidl.task.classification import is_real
from mpidl.task.distill import SoftLabels
from mpidl.task.metrics import Metric, MultilabelF1
from mpidl.task.spec import OTHER_DATA, FieldSpec, Shape, TargetSpec


class Multilabel(Task):
    """Several labels of 0 or 1 for each sample; the fields of several names are joined.

    Outputs are logits (n, labels) of independent binary decisions.
    """

    class Options(Section, frozen=True):
        """Options of multilabel.

        Attributes:
            threshold: Probability from which a label counts as predicted.
        """

        threshold: Fraction = 0.5

    losses = ("bce",)
    soft = SoftLabels
    best = "macro_f1"
    maximize = True

    @classmethod
    def describe_targets(cls, options: Any, data: Source) -> TargetSpec:
        where = data.where
        for name, field in data.labels.items():
            if not is_real(field) and (field.classes or 2) > 2:
                raise DataError(
                    f"the label {name!r} holds numbers up to {(field.classes or 0) - 1}, but the "
                    "task 'multilabel' takes labels of 0 and 1",
                    where=where,
                    remedy='set task.name = "classification" for one class of several, or shard '
                    "one column of 0 and 1 for each label",
                )
        count = sum(math.prod(field.shape) for field in data.labels.values())
        specs = tuple(FieldSpec(name, field.shape) for name, field in data.labels.items())
        return TargetSpec(specs, shape=(count,))

    def check_targets(self, manifest: Manifest, where: str) -> None:
        for own in self.spec.target.fields:
            own.check(manifest, where)
            if (manifest.fields[own.name].classes or 2) > 2:
                raise DataError(
                    f"the label {own.name!r} holds other numbers than 0 and 1",
                    where=where,
                    remedy=OTHER_DATA,
                )

    @property
    def labels(self) -> int:
        """Number of labels."""
        return self.spec.target.shape[0]

    @property
    def output_sizes(self) -> Sequence[int]:
        return [self.labels]

    def fits(self, output_shape: Shape) -> bool:
        return output_shape == (self.labels,)

    def targets(self, arrays: Arrays) -> NDArray[Any]:
        parts = [arrays[field.name] for field in self.spec.target.fields]
        rows = [part.reshape(len(part), -1).astype(np.float32) for part in parts]
        return rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1)

    def make_metrics(self) -> list[Metric]:
        share = min(max(self.options.threshold, 1e-12), 1 - 1e-12)
        return [MultilabelF1(self.labels, math.log(share / (1 - share)))]

    def predictions(self, outputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        logits = outputs.reshape(len(outputs), self.labels).astype(np.float64)
        probability = (0.5 * (1 + np.tanh(logits / 2))).astype(np.float32)  # does not overflow
        return {
            "label": (probability > self.options.threshold).astype(np.uint8),
            "probability": probability,
        }
