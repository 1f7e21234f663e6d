"""Inputs and targets of training batches that are augmented on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mpidl.augment import Pipeline, Samples, mix_targets
from mpidl.backend import Array, Workspace, accumulator
from mpidl.backend.contract.augment import Drawn
from mpidl.config import Config
from mpidl.data import Batch
from mpidl.errors import ConfigError
from mpidl.train.build import admit_parts
from mpidl.train.inputs import Inputs
from mpidl.train.teacher import Teacher

MicroBatch = tuple[Array, Array]


def augment(config: Config, inputs: Inputs, teacher: Teacher | None) -> AugmentedInputs | None:
    """What `[augment]` asks for; None where it asks for nothing.

    Args:
        config: Of the run.
        inputs: Without augmentation. Their model is told of samples of another size.
        teacher: As that model, if there is one.

    Raises:
        ConfigError: An augmentation cannot be applied to these samples.
    """
    chosen = config.augment.entries
    if not chosen:
        return None
    if inputs.ids:
        raise ConfigError(
            "tokens cannot be augmented", where="augment", remedy="remove the section [augment]"
        )
    if inputs.task.draws:
        raise ConfigError(
            f"the task {inputs.spec.task!r} takes parts of samples, which cannot be augmented",
            where="augment",
            remedy="remove the section [augment]",
        )
    spec = inputs.spec
    label = spec.target.fields
    scale, shift = (1.0, 0.0) if inputs.scalar is None else inputs.scalar
    samples = Samples(
        shape=spec.shape,
        layout=spec.layout,
        targets="values" if spec.target.classes is None else "classes",
        target_shape=spec.target.shape if len(label) != 1 else label[0].shape,
        scale=scale,
        shift=shift,
        classes=spec.target.classes or 0,
    )
    _check_channels(chosen, inputs)
    pipeline = Pipeline(chosen, samples, inputs.ops)
    taken = pipeline.samples
    if taken.window:
        fields = len(taken.space) if taken.has_field_targets else 0
        admit_parts(inputs.model, config.model, taken.taken_shape, fields)
        if teacher is not None:
            admit_parts(teacher.model, teacher.config.model, taken.taken_shape, fields)
    return AugmentedInputs(inputs, pipeline, config.train.seed)


def _check_channels(chosen: Mapping[str, Any], inputs: Inputs) -> None:
    """Colors are compared and components of vectors exchanged: they need one normalization."""
    apart = inputs.scalar is None
    if "jitter" in chosen and apart:
        raise ConfigError(
            "augment.jitter compares channels, but each has a normalization of its own",
            where="augment.jitter",
            remedy='set data.normalize = "field"',
        )
    options = chosen.get("rotate")
    if options is None:
        return
    targets = any(len(set(f.mean)) > 1 or len(set(f.std)) > 1 for f in inputs.spec.target.fields)
    for key, separate, remedy in (
        ("vectors", apart, 'set data.normalize = "field"'),
        ("target_vectors", targets, "set task.normalize = false"),
    ):
        if getattr(options, key) and separate:
            raise ConfigError(
                f"augment.rotate.{key} turns components of vectors, but each channel has a "
                "normalization of its own",
                where=f"augment.rotate.{key}",
                remedy=remedy,
            )


class AugmentedInputs:
    """Makes inputs and targets of micro-batches, in memory that every step reuses.

    Args:
        inputs: Without augmentation.
        pipeline: The augmentations.
        seed: Of the run.
    """

    def __init__(self, inputs: Inputs, pipeline: Pipeline, seed: int) -> None:
        self._inputs = inputs
        self._pipeline = pipeline
        self._shape = pipeline.samples.taken_shape
        self._seed = seed
        self._space = inputs.ops.workspace()
        self._partners = inputs.ops.workspace()
        mixing = pipeline.mixing
        self._table = None if mixing is None else inputs.ops.to_device(mixing.quantiles)

    def stage(self, batch: Batch, low: int, high: int) -> MicroBatch:
        """The inputs and targets of the samples [low, high) of this rank's batch."""
        if self._pipeline.mixing is None:
            return self._change(batch, low, high, self._space)[:2]
        if batch.partner is None:
            raise ValueError("the sampler does not pair the samples")
        held = self._change(batch.partner, low, high, self._partners)
        # the memory of targets belongs to `Inputs`, which use it again
        other = self._partners.get("kept", held[1].shape, held[1].dtype)
        other[...] = held[1]
        return self._mix(*self._change(batch, low, high, self._space), held[0], other)

    def _mix(self, x: Array, own: Array, drawn: Drawn, other_x: Array, other: Array) -> MicroBatch:
        mixing, ops, table = self._pipeline.mixing, self._inputs.ops, self._table
        assert mixing is not None and table is not None
        exact = accumulator(x.dtype)
        share = self._space.get("share", (len(x),), exact)
        mixing.apply(ops, x, other_x, share, table, drawn)
        if self._pipeline.samples.has_field_targets:
            real, rest = self._real(own), self._real(other)
            if mixing.mix_fields(ops, real, rest, table, drawn):
                own[...] = real
                return x, own
        shape = (len(x), self._pipeline.samples.classes) if mixing.one_class else own.shape
        mixed = self._space.get("mixed", shape, exact if mixing.one_class else own.dtype)
        mix_targets(ops, share, own, other, mixed)
        return x, mixed

    def _change(
        self, batch: Batch, low: int, high: int, space: Workspace
    ) -> tuple[Array, Array, Drawn]:
        """Inputs and targets of samples on their own, and what was drawn from."""
        inputs, ops = self._inputs, self._inputs.ops
        numbers, arrays = batch.samples, batch.arrays
        if high - low < batch.count:
            numbers = numbers[low:high]
            arrays = {name: array[low:high] for name, array in arrays.items()}
        drawn = Drawn(ops.stage(numbers, "samples"), self._seed, batch.epoch)
        raw = inputs.task.features(arrays)
        x = space.get("x", (high - low, *self._shape), inputs.dtype)
        if inputs.scalar is not None and raw[0].dtype in (np.uint8, x.dtype):
            self._pipeline.inputs(ops.stage(raw[0], "features"), x, drawn)
        else:
            self._pipeline.inputs(inputs.features(arrays), x, drawn, normalized=True)
        return x, self._targets(inputs.targets(arrays), drawn, space), drawn

    @staticmethod
    def _real(targets: Array) -> Array:
        """Classes as numbers of 64 bits, which hold them exactly."""
        return targets if targets.dtype.kind == "f" else targets.astype(np.float64)

    def _targets(self, given: Array, drawn: Drawn, space: Workspace) -> Array:
        if not self._pipeline.moves_targets:
            return given
        real = self._real(given)
        shape = self._pipeline.samples.taken_target(real.shape)
        moved = space.get("moved", shape, real.dtype)
        self._pipeline.targets(real, moved, drawn)
        if moved.dtype == given.dtype:
            return moved
        held = space.get("targets", shape, given.dtype)
        held[...] = moved
        return held
