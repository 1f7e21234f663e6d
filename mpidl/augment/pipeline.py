"""The augmentations of a run, applied to a micro-batch on the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mpidl.augment.base import AXES, Moving, Pointwise, Samples
from mpidl.augment.crop import Crop
from mpidl.augment.mixing import Mixing
from mpidl.augment.patch import Patch
from mpidl.augment.registry import AUGMENTATIONS
from mpidl.augment.rotate import Rotate
from mpidl.backend import Array, Ops
from mpidl.backend.contract.augment import Drawn
from mpidl.backend.headers import structs
from mpidl.options import Section


class Pipeline:
    """Augments inputs, and targets that are fields.

    Args:
        chosen: Options by name.
        samples: What samples are.
        ops: The backend.

    Attributes:
        moves_targets: Whether targets are moved too.
        mixing: What mixes samples with partners; None: nothing does.

    Raises:
        ConfigError: An augmentation cannot be applied to such samples.
    """

    def __init__(self, chosen: Mapping[str, Section], samples: Samples, ops: Ops) -> None:
        patch = chosen.get("patch")
        if isinstance(patch, Patch.Options):
            samples = replace(samples, window=patch.size)
        made = [
            AUGMENTATIONS[name](chosen[name], samples) for name in AUGMENTATIONS if name in chosen
        ]
        self.samples = samples
        self.ops = ops
        self._moving = [each for each in made if isinstance(each, Moving)]
        self.mixing = next((each for each in made if isinstance(each, Mixing)), None)
        self._pointwise = [each for each in made if isinstance(each, Pointwise)]
        self.moves_targets = bool(self._moving) and samples.has_field_targets
        crops = [each for each in self._moving if isinstance(each, Crop)]
        self._fill = crops[0].fill if crops else 0.0
        turned = [each.options for each in self._moving if isinstance(each, Rotate)]
        self._vectors = self._pairs(turned[0].vectors if turned else ())
        self._target_vectors = self._pairs(turned[0].target_vectors if turned else ())
        self._records: dict[tuple[int, int], Any] = {}

    def _pairs(self, pairs: tuple[tuple[int, int], ...]) -> Array | None:
        return self.ops.to_device(np.array(pairs, np.int64)) if pairs else None

    def _record(self, count: int, channels: int) -> Any:
        """What is drawn for `count` samples with so many channels; few batches have another size.

        One record is kept for each size of a batch: CUDA kernels may still read it.
        """
        record = self._records.get((count, channels))
        if record is None:
            record = np.zeros((), structs()["augment_geometry"])
            space = (1, 1, 1, *self.samples.space)[-3:]
            for axis, size in zip(AXES, space, strict=True):
                record[axis] = record[f"o{axis}"] = size
                record[f"spread_{axis}"] = 1
            record["n"], record["c"] = count, channels
            for each in self._moving:
                each.place(record)
            self._records[count, channels] = record
        return record

    def inputs(self, raw: Array, out: Array, drawn: Drawn, *, normalized: bool = False) -> None:
        """Augment inputs.

        Args:
            raw: (n, ...), as they are stored, uint8 or of the dtype of `out`.
            out: (n, *taken_shape), normalized.
            drawn: Of the batch.
            normalized: Whether `raw` is so already.
        """
        samples, ops = self.samples, self.ops
        scale, shift = (1.0, 0.0) if normalized else (samples.scale, samples.shift)
        if self._moving:
            record = self._record(len(out), samples.channels)
            ops.augment_gather(raw, out, drawn, record, scale, shift, self._fill)
            if self._vectors is not None:
                ops.augment_vectors(out, self._vectors, drawn, record, samples.shift)
        elif normalized:
            out[...] = raw.reshape(out.shape)
        elif raw.dtype == np.uint8:
            ops.scale_u8(raw.reshape(out.shape), out, scale, shift)
        else:
            ops.scale_float(raw.reshape(out.shape), out, scale, shift)
        for each in self._pointwise:
            each.apply(ops, out, drawn)

    def targets(self, given: Array, out: Array, drawn: Drawn) -> None:
        """Move targets that are fields as their inputs were moved.

        Args:
            given: (n, *target_shape), floating.
            out: `taken_target` of its shape, the same dtype.
            drawn: Of the batch.
        """
        record = self._record(len(out), self.samples.target_channels)
        self.ops.augment_gather(given, out, drawn, record, 1.0, 0.0, -1.0)
        if self._target_vectors is not None:
            self.ops.augment_vectors(out, self._target_vectors, drawn, record, 0.0)
