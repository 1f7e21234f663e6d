"""From what a shard holds to what a model takes: normalised floats in the model's shape."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mpidl.backend import Array, Ops, Workspace
from mpidl.data.manifest import Manifest
from mpidl.errors import DataError
from mpidl.train.config import DataConfig


class InputSpec(msgspec.Struct, frozen=True):
    """What a trained model expects; stored in its checkpoints. shape: of one sample, in NHWC for images."""

    feature: str
    label: str
    field_shape: tuple[int, ...]
    classes: int
    mean: float
    std: float

    @property
    def shape(self) -> tuple[int, ...]:
        """The model's input shape: a grey image (h, w) gets one channel."""
        return (*self.field_shape, 1) if len(self.field_shape) == 2 else self.field_shape

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
        if needs_label and (label is None or (label.classes or 0) > self.classes):
            raise DataError(
                f"the model knows {self.classes} classes in {self.label!r}, the data set has "
                + ("no such field" if label is None else str(label.classes)),
                where=where,
                remedy="use the data set the model was made for, or train a new model",
            )


def input_spec(manifest: Manifest, config: DataConfig, where: str) -> InputSpec:
    """Choose feature and label, and the normalisation: from the configuration, else the statistics of the manifest."""
    feature, label = manifest.only("feature", config.feature, where), manifest.only("label", config.label, where)
    field, classes = manifest.fields[feature], manifest.fields[label].classes
    if not classes:
        raise DataError(f"the field {label!r} is not a label with classes", where=where, remedy="shard with --label")
    statistics = field.statistics
    mean = config.mean if config.mean is not None else (statistics.mean if statistics else 0.0)
    std = config.std if config.std is not None else (statistics.std if statistics and statistics.std > 0 else 1.0)
    return InputSpec(feature, label, field.shape, classes, mean, std)


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
