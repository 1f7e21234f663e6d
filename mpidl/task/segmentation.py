"""Segmentation: a class for each pixel of an image, or for each point of a field or series."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from mpidl.data.manifest import Arrays, Manifest
from mpidl.errors import ConfigError, DataError
from mpidl.nn.losses.base import squeeze
from mpidl.options import NotNegative, Section
from mpidl.task.base import Source
from mpidl.task.classification import (
    ClassTask,
    check_classes,
    count_classes,
    one_label,
    refuse_real_labels,
)
from mpidl.task.metrics import ConfusionMatrix, Metric
from mpidl.task.spec import FieldSpec, Shape, TargetSpec


class Segmentation(ClassTask):
    """A class for each pixel.

    Outputs are logits (n, ..., classes), targets classes (n, ...).
    """

    class Options(Section, frozen=True):
        """Options of segmentation.

        Attributes:
            ignore: Label of pixels that count neither in the loss nor in the metrics, for example
                255; -1: there is none.
            classes: Number of classes; 0: as in the data set. Needed beside `ignore`, which the
                data set counts as a class.
        """

        ignore: Annotated[int, Meta(ge=-1, le=1 << 20)] = -1
        classes: NotNegative = 0

    best = "mean_iou"

    @classmethod
    def describe_targets(cls, options: Any, data: Source) -> TargetSpec:
        where = data.where
        name, field = one_label(data.labels, "segmentation", where)
        refuse_real_labels(field, name, where)
        classes = count_classes(field, name, where)
        if options.ignore == classes - 1 and not options.classes:
            raise ConfigError(
                f"the masks {name!r} hold numbers up to {classes - 1}, which task.ignore leaves "
                "out",
                where=where,
                remedy="say how many classes are left: set task.classes",
            )
        if options.classes > classes or 0 <= options.ignore < options.classes:
            raise ConfigError(
                f"task.classes is {options.classes}, but the masks {name!r} hold numbers up to "
                f"{classes - 1}, and task.ignore is {options.ignore}",
                where=where,
                remedy="number the classes from 0, and ignore a larger number (for example 255)",
            )
        classes = options.classes or classes
        if not squeeze(field.shape):
            raise DataError(
                f"the label {name!r} is one number for a sample, but a segmentation learns a class "
                "for each pixel",
                where=where,
                remedy='set task.name = "classification", or name the masks with data.label',
            )
        return TargetSpec((FieldSpec(name, field.shape),), classes, field.class_names)

    def check_targets(self, manifest: Manifest, where: str) -> None:
        (own,) = self.spec.target.fields
        label = manifest.fields.get(own.name)
        if label is not None and self.options.classes:
            label = msgspec.structs.replace(label, classes=self.options.classes)
        check_classes(self.spec.target, label, where)

    def fits(self, output_shape: Shape) -> bool:
        mask = squeeze(self.spec.target.fields[0].shape)
        return output_shape[-1:] == (self.classes,) and squeeze(output_shape[:-1]) == mask

    def refuse_model(self, name: str, output_shape: Shape) -> ConfigError:
        (own,) = self.spec.target.fields
        return ConfigError(
            f"{name!r} has outputs of shape {output_shape} for a sample, but the masks "
            f"{own.name!r} have the shape {own.shape} with {self.classes} classes",
            where="model",
            remedy="choose a model with an output for each pixel (unet or fno)",
        )

    def targets(self, arrays: Arrays) -> NDArray[Any]:
        found = arrays[self.spec.target.fields[0].name].astype(np.int64)
        if self.options.ignore >= 0:
            found[found == self.options.ignore] = -1
        return found

    def make_metrics(self) -> list[Metric]:
        return [ConfusionMatrix(self.classes, regions=True)]
