"""Inputs and targets of training batches that are augmented on the device."""

from __future__ import annotations

import numpy as np

from mpidl.augment import Pipeline, Samples
from mpidl.backend import Array
from mpidl.backend.contract.augment import Drawn
from mpidl.config import Config
from mpidl.data import Batch
from mpidl.data.manifest import Manifest
from mpidl.train.inputs import Inputs

MicroBatch = tuple[Array, Array]


def augment(config: Config, inputs: Inputs, manifest: Manifest) -> AugmentedInputs | None:
    """What `[augment]` asks for; None where it asks for nothing.

    Raises:
        ConfigError: An augmentation cannot be applied to these samples.
    """
    chosen = config.augment.entries
    if not chosen:
        return None
    spec = inputs.spec
    samples = Samples(
        shape=spec.shape,
        layout=spec.layout,
        targets="values" if spec.classes is None else "classes",
        target_shape=manifest.fields[spec.label].shape,
        scale=1.0 / spec.std,
        shift=-spec.mean / spec.std,
    )
    return AugmentedInputs(inputs, Pipeline(chosen, samples, inputs.ops), config.train.seed)


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
        spec, ops = self._inputs.spec, self._inputs.ops
        numbers = ops.stage(batch.samples[low:high], "samples")
        drawn = Drawn(numbers, self._seed, batch.epoch)
        raw = batch.arrays[spec.feature][low:high]
        x = self._space.get("x", (len(raw), *spec.shape), self._inputs.dtype)
        if raw.dtype in (np.uint8, x.dtype):
            self._pipeline.inputs(ops.stage(raw, "features"), x, drawn)
        else:
            self._pipeline.inputs(self._inputs.features(raw), x, drawn, normalized=True)
        return x, self._targets(self._inputs.targets(batch.arrays[spec.label][low:high]), drawn)

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
