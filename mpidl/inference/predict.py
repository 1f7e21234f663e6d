"""Loads a trained model."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mpidl.backend import Ops, create_ops
from mpidl.comm.context import Context
from mpidl.config import build_config
from mpidl.data.manifest import Arrays
from mpidl.inference import quantized
from mpidl.nn import Model
from mpidl.task import InputSpec, Task
from mpidl.train import checkpoint as ckpt
from mpidl.train.admission import Gate
from mpidl.train.build import build_for_data
from mpidl.train.checkpoint.format import compute_digest
from mpidl.train.inputs import Inputs


class Predictor:
    """A trained model with its input normalization, on every rank. Collective.

    Args:
        path: A checkpoint file, a quantized model, or the output folder of a run (its best
            checkpoint, else the latest).
        context: The ranks.
        backend: Where to compute: "auto", "numpy" or "cupy".

    Raises:
        CheckpointError: There is no such checkpoint, or it is damaged.
        SecurityError: It has to be signed by somebody trusted, and is not.
    """

    def __init__(self, path: Path, context: Context, *, backend: str = "auto") -> None:

        def find() -> ckpt.Checkpoint:
            file = ckpt.find(path)
            with Gate.of_site().file(file):
                return ckpt.read(file, inference=True)

        saved = ckpt.load_for(context, find, f"loading {path}")
        with context.fail_together(f"building the model of {saved.path}"):
            self.config = build_config(saved.meta.config, str(saved.path))
            self.spec = msgspec.convert(saved.meta.inputs, InputSpec)
            self.task: Task = self.config.task.create(self.spec)
            self.ops: Ops = create_ops(backend, context.local_rank, context.threads)
            self.model: Model = build_for_data(self.config.model, self.task, self.ops)
            self.inputs = Inputs(self.task, self.model)
            self.through = self.task.through_samples(self.model)
            quantized.load(saved, self.model)
        self.path, self.meta = saved.path, saved.meta

    @cached_property
    def digest(self) -> str:
        """Tells the parameters, and how products are computed with them, from others."""
        held = (self.model.parameters.values, self.model.parameters.state)
        how = msgspec.json.encode(self.meta.quantized)
        parts = [compute_digest(np.asarray(self.ops.to_host(array))) for array in held]
        return "".join([*parts, hashlib.sha256(how).hexdigest()])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the outputs for a sample."""
        return self.through.output_shape

    def outputs(
        self, arrays: Arrays, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """What the model gives, before the task turns it into predictions.

        Args:
            arrays: The input fields of samples as in the data set, (n, *field shape).
            out: Takes the result; None: a new array.

        Returns:
            (n, *shape).
        """
        found = self.ops.to_host(self.through.forward(self.inputs.features(arrays))[0])
        if out is None:
            return np.array(found, np.float32)  # the next pass reuses the memory
        out[...] = found
        return out

    def activations(self, arrays: Arrays, layer: str) -> NDArray[np.float32]:
        """The output of a layer.

        Args:
            arrays: As of `outputs`.
            layer: Its name.

        Returns:
            (n, ...).
        """
        found = self.model.forward(self.inputs.features(arrays), until=layer)[0]
        return np.array(self.ops.to_host(found), np.float32)

    def predict(self, arrays: Arrays) -> dict[str, NDArray[Any]]:
        """Predictions of the task, such as "label" and "probability", or "value".

        Args:
            arrays: As of `outputs`.

        Returns:
            Arrays (n, ...) by name.
        """
        return self.task.predictions(self.outputs(arrays))
