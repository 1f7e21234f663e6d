"""Regression: real values, single numbers, vectors or whole fields."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.data.manifest import Arrays, Manifest
from mpidl.errors import ConfigError, DataError
from mpidl.nn import LossResult
from mpidl.nn.losses.base import squeeze
from mpidl.options import Section
from mpidl.task.base import Scored, Source, Task
from mpidl.task.classification import is_real
from mpidl.task.distill import SoftValues
from mpidl.task.metrics import Metric, RegressionErrors
from mpidl.task.spec import OTHER_DATA, FieldSpec, Shape, TargetSpec, channel_shape, join_shapes
from mpidl.task.statistics import normalization


class Regression(Task):
    """Real values; the label fields of several names are joined along their channels.

    Targets are normalized by their statistics for training, so the loss is in normalized units;
    predictions and metrics are in the units of the data.
    """

    class Options(Section, frozen=True):
        """Options of regression.

        Attributes:
            normalize: Train on (target - mean) / std, with the statistics of the data set, of each
                channel where it has them.
        """

        normalize: bool = True

    losses = ("mse", "mae", "huber", "relative_l2", "bce")
    soft = SoftValues

    @classmethod
    def describe_targets(cls, options: Any, data: Source) -> TargetSpec:
        where = data.where
        for name, field in data.labels.items():
            if not is_real(field):
                raise ConfigError(
                    f"a regression compares real values, but the label {name!r} holds whole "
                    f"numbers ({field.dtype})",
                    where=where,
                    remedy='for classes set task.name = "classification" (loss cross_entropy); for '
                    "a regression shard it again with --real-labels",
                )
        specs = []
        for name, field in data.labels.items():
            mean, std = normalization(field, data.layout) if options.normalize else ((0.0,), (1.0,))
            specs.append(FieldSpec(name, field.shape, mean, std))
        shape = join_shapes(
            [field.shape for field in specs], data.layout if len(specs) > 1 else "series"
        )
        return TargetSpec(tuple(specs), shape=shape)

    def check_targets(self, manifest: Manifest, where: str) -> None:
        for own in self.spec.target.fields:
            label = manifest.fields.get(own.name)
            if label is None or not is_real(label) or label.shape != own.shape:
                found = "no such field" if label is None else f"{label.dtype} of {label.shape}"
                raise DataError(
                    f"the model was trained for real values {own.name!r} of shape {own.shape}, "
                    f"the data set has {found}",
                    where=where,
                    remedy=OTHER_DATA,
                )

    @property
    def shape(self) -> Shape:
        """Shape of the targets of one sample."""
        return self.spec.target.shape

    @property
    def channels(self) -> int:
        """Of the targets: the last axis, but for gray images (h, w)."""
        gray = len(self.shape) == 2 and self.spec.layout == "image"
        return 1 if gray or not self.shape else self.shape[-1]

    @property
    def output_sizes(self) -> Sequence[int]:
        # a model's outputs are channels behind the axes of a field, or one vector
        return list(dict.fromkeys((self.channels, 1, math.prod(self.shape))))

    def fits(self, output_shape: Shape) -> bool:
        same = squeeze(output_shape) == squeeze(self.shape)
        return same or output_shape == (math.prod(self.shape),)

    def refuse_model(self, name: str, output_shape: Shape) -> ConfigError:
        return ConfigError(
            f"{name!r} has outputs of shape {output_shape} for a sample, but the label "
            f"{self.spec.target.names!r} has the shape {self.shape}",
            where="model",
            remedy="choose a model whose outputs have that shape (unet or fno for fields, mlp for "
            "vectors), other options, or another label (data.label)",
        )

    @cached_property  # asked for in every batch
    def scales(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of each channel."""
        fields = self.spec.target.fields
        if len(fields) == 1:
            widths = [self.channels]
        else:
            widths = [channel_shape(field.shape, self.spec.layout)[-1] for field in fields]
        parts = zip(fields, widths, strict=True)
        pairs = [(np.resize(f.mean, w), np.resize(f.std, w)) for f, w in parts]
        means, stds = zip(*pairs, strict=True)
        return np.concatenate(means), np.concatenate(stds)

    def _stored(self, arrays: Arrays, dtype: Any) -> NDArray[Any]:
        """The targets in their own units, (n, *shape)."""
        fields = self.spec.target.fields
        if len(fields) == 1:
            return arrays[fields[0].name].astype(dtype).reshape(-1, *self.shape)
        axes = self.shape[:-1]
        parts = [arrays[field.name].astype(dtype) for field in fields]
        return np.concatenate([part.reshape(len(part), *axes, -1) for part in parts], axis=-1)

    def targets(self, arrays: Arrays) -> NDArray[Any]:
        stored = self._stored(arrays, np.float64 if self.options.normalize else np.float32)
        if not self.options.normalize:
            return stored
        mean, std = self.scales
        scaled = (stored - mean) / std if self.shape else (stored - mean[0]) / std[0]
        return scaled.astype(np.float32)

    def _restored(self, outputs: NDArray[Any]) -> NDArray[np.float64]:
        """Outputs in the units of the data, (n, *shape)."""
        values = outputs.astype(np.float64).reshape(len(outputs), *self.shape)
        mean, std = self.scales
        return values * std + mean if self.shape else values * std[0] + mean[0]

    def make_metrics(self) -> list[Metric]:
        mean, _ = self.scales
        names = [str(index) for index in range(self.channels)]
        fields = self.spec.target.fields
        if len(fields) == self.channels:
            names = [field.name for field in fields]
        return [RegressionErrors(self.channels, mean, names)]

    def scored(self, outputs: NDArray[Any], result: LossResult, arrays: Arrays) -> Scored:
        return Scored(self._restored(outputs), self._stored(arrays, np.float64), result, arrays)

    def predictions(self, outputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return {"value": self._restored(outputs).astype(np.float32)}
