"""From what a shard holds to what a model takes: normalized floats in the model's shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import zip_longest
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from mpidl.backend import Array, Ops, Workspace
from mpidl.config import DataConfig
from mpidl.data.manifest import Field, Manifest, Statistics
from mpidl.errors import ConfigError, DataError
from mpidl.models import MODELS

EXTENTS = {"image": ("height", "width", "channels"), "series": ("steps", "channels")}


class InputSpec(msgspec.Struct, frozen=True):
    """What a trained model expects; stored in its checkpoints.

    layout: what a field (a, b) is, see DataConfig. class_names: of labels that were words in the source.
    """

    feature: str
    label: str
    field_shape: tuple[int, ...]
    classes: int
    mean: float
    std: float
    layout: Literal["image", "series"] = "image"
    class_names: tuple[str, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The model's input shape, NHWC for images: a gray image (h, w) gets one channel, a series (t, c) is what it is."""
        gray = self.layout == "image" and len(self.field_shape) == 2
        return (*self.field_shape, 1) if gray else self.field_shape

    def check(self, manifest: Manifest, where: str, *, needs_label: bool = True) -> None:
        """DataError if a data set does not have what the model takes."""
        field = manifest.fields.get(self.feature)
        if field is None or field.shape != self.field_shape:
            found = "no such field" if field is None else f"shape {field.shape}"
            raise DataError(
                f"the model takes {self.feature!r} of shape {self.field_shape}, the data set has {found}",
                where=where,
                remedy="use the data set the model was made for, or train a new model",
            )
        label = manifest.fields.get(self.label)
        if needs_label and label is not None:
            _check_one(label, self.label, where)
        if needs_label and (label is None or (label.classes or 0) > self.classes):
            raise DataError(
                f"the model knows {self.classes} classes in {self.label!r}, the data set has "
                + ("no such field" if label is None else str(label.classes)),
                where=where,
                remedy="use the data set the model was made for, or train a new model",
            )
        if needs_label and label is not None:
            self._check_class_names(label, where)

    def _check_class_names(self, label: Field, where: str) -> None:
        """Words are numbered in each data set on its own."""
        ours, theirs = self.class_names, label.class_names
        if ours and theirs and ours != theirs:
            number = next(
                i for i, pair in enumerate(zip_longest(ours, theirs)) if pair[0] != pair[1]
            )
            names = [
                repr(names[number]) if number < len(names) else "nothing"
                for names in (ours, theirs)
            ]
            raise DataError(
                f"class {number} of {self.label!r} is {names[1]} here, but {names[0]} in the training data",
                where=where,
                remedy="shard both from files with the same classes, or write the labels as numbers",
            )


def input_spec(
    manifest: Manifest,
    config: DataConfig,
    where: str,
    model: str = "cnn",
    note: Callable[[str], None] = lambda text: None,
) -> InputSpec:
    """Choose feature and label, their layout, and the normalization: from the configuration, else from the manifest.

    model: its name, which says whether a field (a, b) is an image or a series. note: told what is odd.
    """
    feature, label = (
        manifest.field_with_role("feature", config.feature, where),
        manifest.field_with_role("label", config.label, where),
    )
    if feature == label:
        remedy = "set data.feature and data.label to different fields"
        raise DataError(
            f"{feature!r} is both the feature and the label: a model would only copy it",
            where=where,
            remedy=remedy,
        )
    field, classes = manifest.fields[feature], _classes(manifest, label, where)
    takes = MODELS[model].samples if model in MODELS else "any"
    layout: Literal["image", "series"] = (
        "series" if "series" in (config.layout, takes) and config.layout != "image" else "image"
    )
    names = manifest.fields[label].class_names
    spec = InputSpec(
        feature,
        label,
        field.shape,
        classes,
        *_normalization(field, feature, config, note),
        layout,
        names,
    )
    if config.layout != "auto" and len(field.shape) != 2:
        note(f"data.layout has no effect: samples of {feature!r} have the shape {field.shape}")
    if takes != "any" and len(spec.shape) != len(EXTENTS[takes]):
        wanted = f"{takes if takes == 'series' else takes + 's'} ({', '.join(EXTENTS[takes])})"
        other = f'set data.layout = "{takes}", or ' if len(field.shape) == 2 else ""
        raise ConfigError(
            f"{model!r} takes {wanted}, but samples of {feature!r} have the shape {spec.shape}",
            where=where,
            remedy=f"{other}choose another model: mlp takes any samples",
        )
    return spec


def _check_one(field: Field, name: str, where: str) -> None:
    if math.prod(field.shape) != 1:
        raise DataError(
            f"the label {name!r} has the shape {field.shape}, but a classifier learns one class for each sample",
            where=where,
            remedy="shard one class for each sample; train texts and fields through the API (docs/models.md)",
        )


def _classes(manifest: Manifest, label: str, where: str) -> int:
    field = manifest.fields[label]
    _check_one(field, label, where)
    if field.classes:
        return field.classes
    if np.dtype(field.dtype).kind == "f":
        raise DataError(
            f"the label {label!r} holds real numbers ({field.dtype}): 'mpidl train' trains classifiers only",
            where=where,
            remedy="for classes shard whole numbers from 0, or words; train regressions through the API (docs/models.md)",
        )
    raise DataError(
        f"the field {label!r} was not sharded as a label, so that its classes were not counted",
        where=where,
        remedy=f"shard the data again with --label {label}",
    )


def _normalization(
    field: Field, name: str, config: DataConfig, note: Callable[[str], None]
) -> tuple[float, float]:
    """Mean and standard deviation: from the configuration, else of the manifest, else 0 and 1."""
    statistics = field.statistics or Statistics.with_checksum(0.0, 1.0)
    std = config.std if config.std is not None else statistics.std
    if std == 0:
        note(
            f"the feature {name!r} is {statistics.mean:g} in all samples: nothing can be learned from it"
        )
    return config.mean if config.mean is not None else statistics.mean, std or 1.0


class Inputs:
    """Turns arrays from a reader into arrays for the model, in memory that is used again in every step."""

    def __init__(self, spec: InputSpec, ops: Ops, dtype: Any = np.float32) -> None:
        self.spec, self.ops, self.dtype = spec, ops, np.dtype(dtype)
        self._space: Workspace = ops.workspace()

    def features(self, raw: NDArray[Any]) -> Array:
        """(n, *shape) floats, (raw - mean) / std."""
        x = self._space.get("x", (len(raw), *self.spec.shape), self.dtype)
        device = self.ops.stage(raw, "features").reshape(x.shape)
        scale, shift = 1.0 / self.spec.std, -self.spec.mean / self.spec.std
        if raw.dtype == np.uint8:
            self.ops.scale_u8(device, x, scale, shift)
        else:
            self.ops.scale_float(device, x, scale, shift)
        return x

    def labels(self, raw: NDArray[Any]) -> Array:
        """(n,) int64."""
        held = self._space.get("labels", raw.shape, np.int64)
        held[...] = self.ops.stage(raw.astype(np.int64), "labels")
        return held
