"""The samples that a model is to see: a data set in shards or in place, or raw files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mpidl.comm.context import Context
from mpidl.data.formats import open_source
from mpidl.data.formats.source import Source, infer_role
from mpidl.data.manifest import NAME as MANIFEST
from mpidl.data.manifest import Arrays, load_manifest
from mpidl.data.validate import check_values
from mpidl.errors import DataError
from mpidl.files import file_sha256, reading
from mpidl.task import InputSpec, Task
from mpidl.train.admission import open_signed


class Samples(Protocol):
    """Something with random access to samples."""

    @property
    def units(self) -> Mapping[str, str]:
        """Of the fields that have some."""

    def __len__(self) -> int: ...

    def read(self, low: int, high: int) -> Arrays:
        """The samples [low, high) by field, checked: tokens and labels are in their range."""

    def close(self) -> None:
        """Close all files."""


class _StoredSamples:
    """A data set with a manifest. Collective to make.

    Args:
        folder: Of the data set.
        names: The fields to read.
        context: The ranks, which divide the check of the files.
    """

    def __init__(self, folder: Path, names: Sequence[str], context: Context) -> None:
        self._reader = open_signed(folder, context, driver="posix")
        fields = self._reader.manifest.fields
        self.units: Mapping[str, str] = {
            name: field.units for name, field in fields.items() if field.units
        }
        self._reader.select(names)

    def __len__(self) -> int:
        return len(self._reader)

    def read(self, low: int, high: int) -> Arrays:
        """See `Samples`."""
        arrays = self._reader.read([(low, high)])
        check_values(self._reader, arrays, [(low, high)])
        return arrays

    def close(self) -> None:
        """See `Samples`."""
        self._reader.close()


class RawSamples:
    """Raw files as samples; a lone feature takes the name that the model knows.

    Args:
        source: The files.
        spec: What the model takes.
        where: The files, for messages.

    Raises:
        DataError: They do not have what the model takes.
    """

    def __init__(self, source: Source, spec: InputSpec, where: str) -> None:
        self._source = source
        self._where = where
        self._tokens = spec.target.classes if spec.task == "language_model" else None
        self.units = source.units
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

    def read(self, low: int, high: int) -> Arrays:
        """See `Samples`."""
        found = self._source.read(low, high)
        arrays = {name: np.asarray(found[own]) for name, own in self._names.items()}
        for name, array in arrays.items():
            self._check(name, array, low)
        return arrays

    def _check(self, name: str, array: Any, low: int) -> None:
        """Refuse numbers beyond a vocabulary, and NaN and infinities, as a data set does."""
        if self._tokens is not None:
            bad, rule = (array < 0) | (array >= self._tokens), f"must lie in [0, {self._tokens})"
        elif array.dtype.kind == "f":
            bad, rule = ~np.isfinite(array), "must be finite"
        else:
            return
        if bad.any():
            place = np.unravel_index(int(bad.argmax()), bad.shape)
            number = self._source.number(low + int(place[0]))
            raise DataError(
                f"sample {number} has {name!r} = {array[place]}, but values {rule}",
                where=self._where,
                remedy="correct the file, or leave this sample out",
            )

    def close(self) -> None:
        """See `Samples`: importers close their files themselves."""


def open_samples(
    paths: Sequence[Path],
    task: Task,
    context: Context,
    *,
    scored: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Samples:
    """A data set or raw files, checked against what the model takes. Collective.

    Args:
        paths: A folder with a manifest, or raw files.
        task: What the model was trained for.
        context: The ranks.
        scored: The targets are needed too, for metrics.
        options: Of `open_source`, for raw files.

    Raises:
        DataError: They do not fit the model, or cannot be read.
    """
    where, spec = ", ".join(map(str, paths)), task.spec
    samples: Samples | None = None
    names: list[str] = []
    with context.fail_together(f"opening {where}"):
        if is_dataset(paths):
            task.check(load_manifest(paths[0]), where, needs_label=scored)
            names = [field.name for field in spec.features]
            if scored:
                names = [*spec.field_names, *task.extra_fields]
        elif scored:
            raise DataError(
                "metrics need targets in a sharded data set",
                where=where,
                remedy="shard these files first, or leave out --metrics",
            )
        else:
            samples = RawSamples(open_source(paths, **(options or {})), spec, where)
    if samples is None:
        samples = _StoredSamples(paths[0], names, context)
    with context.fail_together(f"opening {where}"):
        if not len(samples):
            raise DataError("has no samples", where=where, remedy="give other data")
    return samples


def is_dataset(paths: Sequence[Path]) -> bool:
    """Whether a data set with a manifest is meant, not raw files."""
    return len(paths) == 1 and (paths[0] / MANIFEST).is_file()


def identify(paths: Sequence[Path], options: Mapping[str, Any]) -> str:
    """A digest of data, to go on with an interrupted prediction of the same ones only.

    Of a data set: its manifest, which has the digests of its files; of raw files: their names,
    sizes and times.

    Args:
        paths: As of `open_samples`.
        options: As of `open_samples`.

    Raises:
        DataError: A file is out of reach.
    """
    digest = hashlib.sha256()
    for path in paths:
        with reading(path):
            if is_dataset([path]):
                digest.update(file_sha256(path / MANIFEST).encode())
                continue
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            for file in files:
                found = file.stat()
                stamp = f"{file.absolute()}\0{found.st_size}\0{found.st_mtime_ns}\0"
                digest.update(stamp.encode(errors="surrogateescape"))
    digest.update(repr(sorted((name, str(value)) for name, value in options.items())).encode())
    return digest.hexdigest()
