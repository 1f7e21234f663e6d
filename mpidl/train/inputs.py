"""From what a shard holds to what a model takes: normalized floats in the model's shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import zip_longest
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from mpidl.backend import Array
from mpidl.config import Config, DataConfig
from mpidl.data.manifest import Field, Manifest, Statistics
from mpidl.errors import ConfigError, DataError
from mpidl.nn import Model

Shape = tuple[int, ...]
Note = Callable[[str], None]
SIZES = {"image": ("height", "width", "channels"), "series": ("steps", "channels")}
OTHER_DATA = "use the data set the model was made for, or train a new model"


class InputSpec(msgspec.Struct, frozen=True):
    """What a trained model expects of a data set; stored in its checkpoints.

    Attributes:
        feature: Name of the input field.
        label: Name of the target field.
        field_shape: Of one sample of the input field.
        classes: Number of classes; None where targets are real values.
        mean: Subtracted from inputs.
        std: Divides inputs.
        layout: What a field (a, b) is, see `DataConfig`.
        class_names: Of labels that were words in the source.
        target_shape: Of one sample's real values.
    """

    feature: str
    label: str
    field_shape: Shape
    classes: int | None
    mean: float
    std: float
    layout: Literal["image", "series"] = "image"
    class_names: tuple[str, ...] | None = None
    target_shape: Shape = ()

    @property
    def shape(self) -> Shape:
        """The model's input shape, NHWC for images.

        A gray image (h, w) gets one channel, a series (t, c) is what it is.
        """
        gray = self.layout == "image" and len(self.field_shape) == 2
        return (*self.field_shape, 1) if gray else self.field_shape

    def check(self, manifest: Manifest, where: str, *, needs_label: bool = True) -> None:
        """Refuse a data set that does not have what the model takes.

        Args:
            manifest: Of the data set.
            where: Its place, for messages.
            needs_label: Whether it must have targets too.

        Raises:
            DataError: A field is missing or different.
        """
        field = manifest.fields.get(self.feature)
        if field is None or field.shape != self.field_shape:
            found = "no such field" if field is None else f"shape {field.shape}"
            raise DataError(
                f"the model takes {self.feature!r} of shape {self.field_shape}, the data set has "
                f"{found}",
                where=where,
                remedy=OTHER_DATA,
            )
        if needs_label:
            self._check_label(manifest.fields.get(self.label), where)

    def _check_label(self, label: Field | None, where: str) -> None:
        if self.classes is None:
            if label is None or not _is_real(label) or label.shape != self.target_shape:
                found = "no such field" if label is None else f"{label.dtype} of {label.shape}"
                raise DataError(
                    f"the model was trained for real values {self.label!r} of shape "
                    f"{self.target_shape}, the data set has {found}",
                    where=where,
                    remedy=OTHER_DATA,
                )
            return
        if label is not None:
            _check_one_class(label, self.label, where)
        if label is None or (label.classes or 0) > self.classes:
            found = "no such field" if label is None else str(label.classes)
            raise DataError(
                f"the model knows {self.classes} classes in {self.label!r}, the data set has "
                f"{found}",
                where=where,
                remedy=OTHER_DATA,
            )
        self._check_class_names(label, where)

    def _check_class_names(self, label: Field, where: str) -> None:
        """Words are numbered in each data set on its own."""
        ours, theirs = self.class_names, label.class_names
        if not ours or not theirs or ours == theirs:
            return
        pairs = enumerate(zip_longest(ours, theirs, fillvalue=None))
        number, (own, other) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        words = ["nothing" if name is None else repr(name) for name in (own, other)]
        raise DataError(
            f"class {number} of {self.label!r} is {words[1]} here, but {words[0]} in the training "
            "data",
            where=where,
            remedy="shard both from files with the same classes, or write the labels as numbers",
        )


def input_spec(manifest: Manifest, config: Config, note: Note = lambda text: None) -> InputSpec:
    """Choose feature and label, their layout, and the normalization.

    Args:
        manifest: Of the training data.
        config: Of the run; what it leaves open comes from the manifest. The model says whether a
            field (a, b) is an image or a series, the loss whether targets are classes or values.
        note: Told what is odd.

    Raises:
        DataError: The data set does not have what the run needs.
        ConfigError: The model or the loss does not fit the data.
    """
    data = config.data
    where = ", ".join(data.folders)
    feature = manifest.field_with_role("feature", data.feature, where)
    label = manifest.field_with_role("label", data.label, where)
    if feature == label:
        raise DataError(
            f"{feature!r} is both the feature and the label: a model would only copy it",
            where=where,
            remedy="set data.feature and data.label to different fields",
        )
    field, target = manifest.fields[feature], manifest.fields[label]
    takes = config.model.chosen.samples
    series = "series" in (data.layout, takes) and data.layout != "image"
    mean, std = _normalization(field, feature, data, note)
    real = config.loss.chosen.targets == "values"
    if real:
        _check_real(target, label, config.loss.name, where)
    spec = InputSpec(
        feature=feature,
        label=label,
        field_shape=field.shape,
        classes=None if real else _count_classes(target, label, where),
        mean=mean,
        std=std,
        layout="series" if series else "image",
        class_names=target.class_names,
        target_shape=target.shape if real else (),
    )
    if data.layout != "auto" and len(field.shape) != 2:
        note(f"data.layout has no effect: samples of {feature!r} have the shape {field.shape}")
    _check_dimensions(spec, config.model.name, takes, where)
    return spec


def _check_dimensions(spec: InputSpec, model: str, takes: str, where: str) -> None:
    """Refuse samples that have not as many axes as the model takes."""
    if takes == "any" or len(spec.shape) == len(SIZES[takes]):
        return
    wanted = f"{takes if takes == 'series' else takes + 's'} ({', '.join(SIZES[takes])})"
    other = f'set data.layout = "{takes}", or ' if len(spec.field_shape) == 2 else ""
    raise ConfigError(
        f"{model!r} takes {wanted}, but samples of {spec.feature!r} have the shape {spec.shape}",
        where=where,
        remedy=f"{other}choose another model: mlp takes any samples",
    )


def _is_real(field: Field) -> bool:
    return np.dtype(field.dtype).kind == "f"


def _check_real(field: Field, name: str, loss: str, where: str) -> None:
    """Refuse targets that are no real values."""
    if not _is_real(field):
        raise ConfigError(
            f"the loss {loss!r} compares real values, but the label {name!r} holds whole numbers "
            f"({field.dtype})",
            where=where,
            remedy='for classes set loss.name = "cross_entropy"; for a regression shard the label '
            "again as real numbers",
        )


def _check_one_class(field: Field, name: str, where: str) -> None:
    if math.prod(field.shape) != 1:
        raise DataError(
            f"the label {name!r} has the shape {field.shape}, but a classifier learns one class "
            "for each sample",
            where=where,
            remedy="shard one class for each sample; for a regression shard real numbers and set "
            'loss.name = "mse"; train texts through the API (docs/models.md)',
        )


def _count_classes(field: Field, name: str, where: str) -> int:
    if _is_real(field):
        raise DataError(
            f"the label {name!r} holds real numbers ({field.dtype}), but cross_entropy compares "
            "classes",
            where=where,
            remedy='for a regression set loss.name = "mse" (or mae, huber, relative_l2, bce); for '
            "classes shard whole numbers from 0, or words",
        )
    _check_one_class(field, name, where)
    if field.classes:
        return field.classes
    raise DataError(
        f"the field {name!r} was not sharded as a label, so that its classes were not counted",
        where=where,
        remedy=f"shard the data again with --label {name}",
    )


def _normalization(field: Field, name: str, data: DataConfig, note: Note) -> tuple[float, float]:
    """Mean and standard deviation: from the configuration, else of the manifest, else 0 and 1."""
    statistics = field.statistics or Statistics.with_checksum(0.0, 1.0)
    std = data.std if data.std is not None else statistics.std
    if std == 0:
        note(
            f"the feature {name!r} is {statistics.mean:g} in all samples: nothing can be learned "
            "from it"
        )
    return data.mean if data.mean is not None else statistics.mean, std or 1.0


class Inputs:
    """Turns arrays from a reader into arrays for the model, in memory that every step reuses.

    Args:
        spec: What the model expects of a data set.
        model: It says shapes and dtype.
    """

    def __init__(self, spec: InputSpec, model: Model) -> None:
        self.spec = spec
        self.ops = model.ops
        self.dtype = np.dtype(model.parameters.compute_dtype)
        self._output_shape = model.output_shape
        self._space = self.ops.workspace()

    def features(self, raw: NDArray[Any]) -> Array:
        """(n, *shape) floats on the device, (raw - mean) / std."""
        x = self._space.get("x", (len(raw), *self.spec.shape), self.dtype)
        device = self.ops.stage(raw, "features").reshape(x.shape)
        scale, shift = 1.0 / self.spec.std, -self.spec.mean / self.spec.std
        if raw.dtype == np.uint8:
            self.ops.scale_u8(device, x, scale, shift)
        else:
            self.ops.scale_float(device, x, scale, shift)
        return x

    def targets(self, raw: NDArray[Any]) -> Array:
        """Classes as int64, real values as float32 in the shape of the outputs, on the device."""
        if self.spec.classes is None:
            values = raw.reshape(len(raw), *self._output_shape).astype(np.float32)
        else:
            values = raw.astype(np.int64)
        held = self._space.get("targets", values.shape, values.dtype)
        held[...] = self.ops.stage(values, "targets")
        return held
