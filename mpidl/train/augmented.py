"""Inputs and targets of training batches that are augmented on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mpidl.augment import Pipeline, Samples
from mpidl.backend import Array
from mpidl.backend.contract.augment import Drawn
from mpidl.config import Config
from mpidl.data import Batch
from mpidl.errors import ConfigError
from mpidl.train.inputs import Inputs

MicroBatch = tuple[Array, Array]


def augment(config: Config, inputs: Inputs) -> AugmentedInputs | None:
    """What `[augment]` asks for; None where it asks for nothing.

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
    )
    _check_vectors(chosen, inputs)
    return AugmentedInputs(inputs, Pipeline(chosen, samples, inputs.ops), config.train.seed)


def _check_vectors(chosen: Mapping[str, Any], inputs: Inputs) -> None:
    """Components of vectors are exchanged: they need one normalization."""
    options = chosen.get("rotate")
    if options is None:
        return
    apart = inputs.scalar is None
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
        self._seed = seed
        self._space = inputs.ops.workspace()

    def stage(self, batch: Batch, low: int, high: int) -> MicroBatch:
        """The inputs and targets of the samples [low, high) of this rank's batch."""
        inputs, ops = self._inputs, self._inputs.ops
        numbers = ops.stage(batch.samples[low:high], "samples")
        drawn = Drawn(numbers, self._seed, batch.epoch)
        arrays = {name: array[low:high] for name, array in batch.arrays.items()}
        raw = inputs.task.features(arrays)
        x = self._space.get("x", (high - low, *inputs.spec.shape), inputs.dtype)
        if inputs.scalar is not None and raw[0].dtype in (np.uint8, x.dtype):
            self._pipeline.inputs(ops.stage(raw[0], "features"), x, drawn)
        else:
            self._pipeline.inputs(inputs.features(arrays), x, drawn, normalized=True)
        return x, self._targets(inputs.targets(arrays), drawn)

    def _targets(self, given: Array, drawn: Drawn) -> Array:
        if not self._pipeline.moves_targets:
            return given
        # classes as numbers of 64 bits, which hold them exactly
        real = given if given.dtype.kind == "f" else given.astype(np.float64)
        moved = self._space.get("moved", real.shape, real.dtype)
        self._pipeline.targets(real, moved, drawn)
        if moved.dtype == given.dtype:
            return moved
        held = self._space.get("targets", given.shape, given.dtype)
        held[...] = moved
        return held
