"""From what a shard holds to what a model takes: normalized floats in the model's shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from mpidl.backend import Array, Ops
from mpidl.config import Config, DataConfig
from mpidl.data.manifest import Arrays, Field, Manifest
from mpidl.errors import ConfigError, DataError
from mpidl.nn import Model
from mpidl.task import AUTO, TASKS, FieldSpec, InputSpec, Source, Task, check_loss
from mpidl.task.spec import channel_shape
from mpidl.task.statistics import normalization

Note = Callable[[str], None]
SIZES = {"image": ("height", "width", "channels"), "series": ("steps", "channels")}


def choose_task(manifest: Manifest, config: Config, note: Note = lambda text: None) -> Task:
    """The task of a run: features and labels, their layout, and the normalization.

    Args:
        manifest: Of the training data.
        config: Of the run; what it leaves open comes from the manifest. The model says whether a
            field (a, b) is an image or a series.
        note: Told what is odd.

    Raises:
        DataError: The data set does not have what the run needs.
        ConfigError: The model, the task or the loss does not fit the data.
    """
    data = config.data
    where = ", ".join(data.folders)
    features = _choose(manifest, "feature", data.feature, where)
    labels = _choose_labels(manifest, config, features, where)
    both = [name for name in labels if name in features]
    if both:
        raise DataError(
            f"{both[0]!r} is both the feature and the label: a model would only copy it",
            where=where,
            remedy="set data.feature and data.label to different fields",
        )
    name, options = config.task.decide(config.loss.name, features, labels)
    check_loss(name, config.loss.name)
    takes = config.model.chosen.samples
    series = "series" in (data.layout, takes) and data.layout != "image"
    layout: Literal["image", "series"] = "series" if series else "image"
    specs = tuple(
        FieldSpec(feature, field.shape, *_normalization(field, feature, data, layout, note))
        for feature, field in features.items()
    )
    target = TASKS[name].describe_targets(options, Source(features, labels, layout, where))
    task = TASKS[name](options, InputSpec(name, specs, target, layout))
    if data.layout != "auto" and all(len(field.shape) != 2 for field in features.values()):
        names, shape = task.spec.feature_names, specs[0].shape
        note(f"data.layout has no effect: samples of {names!r} have the shape {shape}")
    _check_dimensions(task, config.model.name, takes, where)
    return task


def _choose(
    manifest: Manifest,
    role: Literal["feature", "label"],
    wanted: str | tuple[str, ...] | None,
    where: str,
) -> dict[str, Field]:
    """The fields of a role."""
    names = [wanted] if wanted is None or isinstance(wanted, str) else list(wanted)
    found = [manifest.field_with_role(role, name, where) for name in names]
    return {name: manifest.fields[name] for name in found}


def _choose_labels(
    manifest: Manifest, config: Config, features: dict[str, Field], where: str
) -> dict[str, Field]:
    """The label fields; none for a task whose inputs are its targets."""
    wanted, task = config.data.label, config.task.name
    if task != AUTO and not TASKS[task].needs_label:
        return {}
    tokens = all(len(f.shape) == 1 and f.classes is not None for f in features.values())
    labelled = wanted is not None or any(f.role == "label" for f in manifest.fields.values())
    if task == AUTO and tokens and not labelled:
        return {}
    return _choose(manifest, "label", wanted, where)


def _check_dimensions(task: Task, model: str, takes: str, where: str) -> None:
    """Refuse samples that have not as many axes as the model takes."""
    shape, spec = task.input_shape, task.spec
    if takes == "any" or len(shape) == len(SIZES[takes]):
        return
    if takes == "series" and task.gives_tokens:
        return  # (t,), which such a model embeds
    wanted = f"{takes if takes == 'series' else takes + 's'} ({', '.join(SIZES[takes])})"
    plain = len(spec.features[0].shape) == 2
    other = f'set data.layout = "{takes}", or ' if plain else ""
    raise ConfigError(
        f"{model!r} takes {wanted}, but samples of {spec.feature_names!r} have the shape {shape}",
        where=where,
        remedy=f"{other}choose another model: mlp takes any samples",
    )


def _normalization(
    field: Field, name: str, data: DataConfig, layout: str, note: Note
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation: from the configuration, else of the manifest, else 0 and 1."""
    if field.classes is not None and field.role == "feature":
        return (0.0,), (1.0,)  # tokens
    # bytes are pixels, which share their units; channels of real values may have any
    channels = data.normalize == "channel" or (
        data.normalize == "auto" and np.dtype(field.dtype).kind == "f"
    )
    mean, std = normalization(field, layout, channels=channels)
    if field.statistics is not None and field.statistics.std == 0 and data.std is None:
        note(
            f"the feature {name!r} is {field.statistics.mean:g} in all samples: nothing can be "
            "learned from it"
        )
    return (
        (data.mean,) if data.mean is not None else mean,
        (data.std,) if data.std is not None else std,
    )


class Inputs:
    """Turns arrays from a reader into arrays for the model, in memory that every step reuses.

    Args:
        task: What the model is trained for; it knows the fields.
        model: It says shapes and dtype.
    """

    def __init__(self, task: Task, model: Model) -> None:
        self.task = task
        self.model = model
        self.spec = task.spec
        self.ops = model.ops
        self.ids = model.takes_ids
        self.dtype = np.dtype(np.int64 if model.takes_ids else model.parameters.compute_dtype)
        self._shape = model.input_shape
        self._space = self.ops.workspace()
        self._scales = [Scale(field.mean, field.std, self.ops) for field in task.input_fields]

    @property
    def scalar(self) -> tuple[float, float] | None:
        """Factor and summand of the one input field; None where fields or channels have more."""
        one = self._scales[0]
        return (one.scale, one.shift) if len(self._scales) == 1 and one.scales is None else None

    def features(self, arrays: Arrays) -> Array:
        """(n, *shape) floats on the device, (raw - mean) / std; or ids.

        Args:
            arrays: The fields of a batch, (n, *field shape).
        """
        raw = self.task.features(arrays)
        count = len(raw[0])
        x = self._space.get("x", (count, *self._shape), self.dtype)
        if self.ids:
            x[...] = self.ops.stage(np.ascontiguousarray(raw[0], np.int64), "features")
            return x
        if len(raw) == 1:
            self._scales[0].apply(self.ops.stage(raw[0], "features").reshape(x.shape), x)
            return x
        start = 0
        for index, (one, scale) in enumerate(zip(raw, self._scales, strict=True)):
            shape = (count, *channel_shape(one.shape[1:], self.spec.layout))
            part = self._space.get(f"x{index}", shape, self.dtype)
            scale.apply(self.ops.stage(one, f"features{index}").reshape(shape), part)
            x[..., start : start + shape[-1]] = part
            start += shape[-1]
        return x

    def targets(self, arrays: Arrays) -> Array:
        """What the loss compares with, on the device: classes as int64, values as float32.

        Args:
            arrays: The fields of a batch, (n, *field shape).
        """
        values = self.task.targets(arrays)
        held = self._space.get("targets", values.shape, values.dtype)
        held[...] = self.ops.stage(values, "targets")
        return held


class Scale:
    """A normalization, by one number or by one for each channel.

    Args:
        mean: One number, or one for each channel (the last axis).
        std: As `mean`.
        ops: The backend.
    """

    def __init__(self, mean: ArrayLike, std: ArrayLike, ops: Ops) -> None:
        self.ops = ops
        scale, shift = 1.0 / np.array(std), -np.array(mean) / np.array(std)
        self.scale, self.shift = float(scale[0]), float(shift[0])
        self.scales: Array | None = None
        if len(scale) > 1:
            self.scales = ops.to_device(scale.astype(np.float32))
            self.shifts = ops.to_device(shift.astype(np.float32))

    def apply(self, raw: Array, out: Array) -> None:
        """out = (raw - mean) / std, of the same shape."""
        if self.scales is not None:
            self.ops.xp.multiply(raw, self.scales, out=out, casting="unsafe")
            out += self.shifts
        elif raw.dtype == np.uint8:
            self.ops.scale_u8(raw, out, self.scale, self.shift)
        else:
            self.ops.scale_float(raw, out, self.scale, self.shift)
