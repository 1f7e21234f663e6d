"""Loads a trained model and the samples that it is to see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from mpidl.backend import Ops, create_ops
from mpidl.comm.context import Context
from mpidl.config import build_config
from mpidl.data.formats import open_source
from mpidl.data.formats.source import Source, infer_role
from mpidl.data.manifest import NAME as MANIFEST
from mpidl.data.manifest import Arrays, load_manifest
from mpidl.data.reader import Reader
from mpidl.errors import CheckpointError, DataError
from mpidl.inference import quantized
from mpidl.nn import Model
from mpidl.task import InputSpec, Task
from mpidl.train import checkpoint as ckpt
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
    """

    def __init__(self, path: Path, context: Context, *, backend: str = "auto") -> None:
        saved = ckpt.load_for(
            context, lambda: ckpt.read(find_checkpoint(path), inference=True), f"loading {path}"
        )
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
        self.digest = "".join(
            compute_digest(saved.buffers[name]) for name in quantized.BUFFERS
            if name in saved.buffers
        )  # fmt: skip

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the outputs for a sample."""
        return self.through.output_shape

    def outputs(self, arrays: Arrays) -> NDArray[np.float32]:
        """What the model gives, before the task turns it into predictions.

        Args:
            arrays: The input fields of samples as in the data set, (n, *field shape).

        Returns:
            (n, *shape).
        """
        found = self.through.forward(self.inputs.features(arrays))[0]
        return np.array(self.ops.to_host(found), np.float32)  # the next pass reuses the memory

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
    """Raw files as samples; a lone feature takes the name that the model knows."""

    def __init__(self, source: Source, spec: InputSpec, where: str) -> None:
        self._source = source
        arrays = source.read(0, min(1, source.samples))
        labels = {field.name for field in spec.target.fields}
        features = [
            name
            for name, array in arrays.items()
            if name not in labels and infer_role(name, array, source.label) == "feature"
        ]
        self._names = {field.name: field.name for field in spec.features}  # ours -> the source's
        if len(spec.features) == 1 and spec.features[0].name not in arrays and features:
            self._names = {spec.features[0].name: features[0]}
        for field in spec.features:
            own = self._names[field.name]
            if own not in arrays or arrays[own].shape[1:] != field.shape:
                found = {name: array.shape[1:] for name, array in arrays.items()}
                raise DataError(
                    f"the model takes samples of shape {field.shape} in {field.name!r}, found "
                    f"{found}",
                    where=where,
                    remedy="give data of that shape; a label among its columns is left out with "
                    "--label NAME",
                )

    def __len__(self) -> int:
        return self._source.samples

    def read(self, pieces: Sequence[tuple[int, int]]) -> Arrays:
        parts = [self._source.read(*piece) for piece in pieces]
        return {
            name: np.concatenate([part[own] for part in parts]) for name, own in self._names.items()
        }


def open_samples(
    paths: Sequence[Path], task: Task, *, scored: bool = False, **options: Any
) -> Samples:
    """A sharded data set or raw files, checked against what the model takes.

    Args:
        paths: A folder with a manifest, or raw files.
        task: What the model was trained for.
        scored: The targets are needed too, for metrics.
        options: Of `open_source`, for raw files.

    Raises:
        DataError: They do not fit the model, or cannot be read.
    """
    spec = task.spec
    if len(paths) == 1 and (paths[0] / MANIFEST).is_file():
        names = [field.name for field in spec.features]
        manifest = load_manifest(paths[0])
        task.check(manifest, str(paths[0]), needs_label=scored)
        if scored:
            names = [*spec.field_names, *task.extra_fields]
        return Reader(paths[0], driver="posix", fields=names)
    if scored:
        raise DataError(
            "metrics need targets in a sharded data set",
            where=", ".join(map(str, paths)),
            remedy="shard these files first, or leave out --metrics",
        )
    return _RawSamples(open_source(paths, **options), spec, ", ".join(map(str, paths)))


def identify(paths: Sequence[Path], options: dict[str, Any]) -> dict[str, Any]:
    """What tells data from others, to go on with an interrupted prediction of the same ones.

    Args:
        paths: As of `open_samples`.
        options: As of `open_samples`.
    """
    files = [path / MANIFEST if (path / MANIFEST).is_file() else path for path in paths]
    stamps = [
        [str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns] for file in files
    ]
    return {"files": stamps, "options": {name: str(value) for name, value in options.items()}}
