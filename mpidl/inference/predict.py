"""Loads a trained model, and predicts on all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from mpidl.backend import Ops, create_ops
from mpidl.collectives import recv, send
from mpidl.comm.context import Context
from mpidl.config import build_config
from mpidl.data.formats import open_source
from mpidl.data.formats.source import Source
from mpidl.data.manifest import NAME as MANIFEST
from mpidl.data.manifest import Arrays
from mpidl.data.reader import Reader
from mpidl.data.sampler import contiguous_batches
from mpidl.errors import CheckpointError, DataError
from mpidl.nn import Model
from mpidl.train import checkpoint as ckpt
from mpidl.train.build import build_for_data
from mpidl.train.inputs import Inputs, InputSpec

BATCH = 256


class Predictor:
    """A trained model with its input normalization, on every rank. Collective.

    Args:
        path: A checkpoint file, or the output folder of a run (its best checkpoint, else the
            latest).
        context: The ranks.
        backend: Where to compute: "auto", "numpy" or "cupy".

    Raises:
        CheckpointError: There is no such checkpoint, or it is damaged.
    """

    def __init__(self, path: Path, context: Context, *, backend: str = "auto") -> None:
        saved = ckpt.load_for(context, lambda: ckpt.read(find_checkpoint(path)), f"loading {path}")
        with context.fail_together(f"building the model of {saved.path}"):
            self.config = build_config(saved.meta.config, str(saved.path))
            self.spec = msgspec.convert(saved.meta.inputs, InputSpec)
            self.ops: Ops = create_ops(backend, context.local_rank, context.threads)
            self.model: Model = build_for_data(self.config.model, self.spec, self.ops)
            self.inputs = Inputs(self.spec, self.model)
            values = self.model.parameters.values
            if values.shape != saved.buffers["parameters"].shape:
                raise CheckpointError(
                    "does not fit its own model",
                    where=str(saved.path),
                    remedy="use the mpidl that wrote it",
                )
            values[...] = self.ops.to_device(saved.buffers["parameters"])
            if self.model.parameters.state.size:
                self.model.parameters.state[...] = self.ops.to_device(saved.buffers["state"])
        self.path = saved.path

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the prediction for a sample: (classes,), or that of the target."""
        return self.spec.target_shape if self.spec.classes is None else (self.spec.classes,)

    def predict(self, raw: NDArray[Any]) -> NDArray[Any]:
        """Probabilities of the classes, or the values of a regression.

        Args:
            raw: Samples as in the data set, (n, *field shape).

        Returns:
            (n, *shape) float32.
        """
        if self.spec.classes is not None:
            return self.probabilities(raw)
        outputs = self.model.forward(self.inputs.features(raw))[0]
        # a copy: the next pass reuses the memory
        return np.array(self.ops.to_host(outputs), np.float32).reshape(len(raw), *self.shape)

    def probabilities(self, raw: NDArray[Any]) -> NDArray[Any]:
        """Probabilities of the classes.

        Args:
            raw: Samples as in the data set, (n, *field shape).

        Returns:
            (n, classes) float32, each row adds up to 1.
        """
        logits = self.ops.to_host(self.model.forward(self.inputs.features(raw))[0]).astype(
            np.float64
        )
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        result: NDArray[Any] = (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)
        return result


def find_checkpoint(path: Path) -> Path:
    """The checkpoint file that `path` means.

    Args:
        path: See `Predictor`.

    Raises:
        CheckpointError: There is none.
    """
    if path.is_file():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    candidates = [folder / ckpt.BEST, *ckpt.list_checkpoints(folder)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise CheckpointError(
        "no checkpoint found",
        where=str(path),
        remedy="name a .h5 checkpoint or the output folder of a run",
    )


class Samples(Protocol):
    """Something with random access to samples: a Reader, or raw files."""

    def __len__(self) -> int: ...

    def read(self, pieces: Sequence[tuple[int, int]]) -> Arrays:
        """The samples of the pieces, by field."""


class _RawSamples:
    """Raw files as samples; their first feature takes the name that the model knows."""

    def __init__(self, source: Source, spec: InputSpec, where: str) -> None:
        self._source = source
        self._spec = spec
        arrays = source.read(0, min(1, source.samples))
        roles = replace(source.roles, labels=source.roles.labels or (spec.label,))
        features = [
            name for name, array in arrays.items() if roles.role_of(name, array) == "feature"
        ]
        self._name = spec.feature if spec.feature in arrays else (features[0] if features else "")
        if not self._name or arrays[self._name].shape[1:] != spec.field_shape:
            found = {name: array.shape[1:] for name, array in arrays.items()}
            raise DataError(
                f"the model takes samples of shape {spec.field_shape}, found {found}",
                where=where,
                remedy="give data of that shape; a label among its columns is left out with "
                "--label NAME",
            )

    def __len__(self) -> int:
        return self._source.samples

    def read(self, pieces: Sequence[tuple[int, int]]) -> Arrays:
        return {
            self._spec.feature: np.concatenate(
                [self._source.read(*piece)[self._name] for piece in pieces]
            )
        }


def open_samples(paths: Sequence[Path], spec: InputSpec, **options: Any) -> Samples:
    """A sharded data set or raw files, checked against what the model takes.

    Args:
        paths: A folder with a manifest, or raw files.
        spec: What the model takes.
        options: Of `open_source`, for raw files.

    Raises:
        DataError: They do not fit the model, or cannot be read.
    """
    if len(paths) == 1 and (paths[0] / MANIFEST).is_file():
        reader = Reader(paths[0], driver="posix", fields=[spec.feature])
        spec.check(reader.manifest, str(paths[0]), needs_label=False)
        return reader
    return _RawSamples(open_source(paths, **options), spec, ", ".join(map(str, paths)))


def predict(predictor: Predictor, samples: Samples, context: Context) -> NDArray[np.float32] | None:
    """Predictions for a whole data set; each rank computes its part. Collective.

    Args:
        predictor: The model.
        samples: The data set.
        context: The ranks.

    Returns:
        (samples, *predictor.shape) on rank 0, None elsewhere.
    """
    own: list[NDArray[Any]] = []
    with context.fail_together("predicting"):
        for piece in contiguous_batches(len(samples), context.rank, context.size, BATCH):
            own.append(predictor.predict(samples.read([piece])[predictor.spec.feature]))
    local = np.concatenate(own) if own else np.empty((0, *predictor.shape), np.float32)
    counts = context.allgather_object(local.size)
    if not context.is_root:
        if local.size:
            send(local.reshape(-1), 0, comm=context.comm)
        return None
    result = np.empty((len(samples), *predictor.shape), np.float32)
    flat, end = result.reshape(-1), counts[0]
    flat[:end] = local.reshape(-1)
    for rank, count in enumerate(counts[1:], 1):
        start, end = end, end + count
        if count:
            recv(flat[start:end], rank, comm=context.comm)
    return result
