"""The samples that a model is to see: a data set in shards or in place, or raw files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mpidl.comm.context import Context
from mpidl.data.formats import open_source
from mpidl.data.manifest import NAME as MANIFEST
from mpidl.data.manifest import Arrays, load_manifest
from mpidl.data.validate import check_values
from mpidl.errors import DataError
from mpidl.files import reading
from mpidl.inference.ids import Columns, find_key, make_ids
from mpidl.inference.raw import RawSamples
from mpidl.security.sealed_file import content_sha256
from mpidl.task import Task
from mpidl.train.admission import open_signed


class Samples(Protocol):
    """Something with random access to samples."""

    @property
    def units(self) -> Mapping[str, str]:
        """Of the fields that have some."""

    def __len__(self) -> int: ...

    def read(self, low: int, high: int) -> Arrays:
        """The samples [low, high) by field, checked: tokens and labels are in their range."""

    def ids(self, low: int, arrays: Arrays) -> Columns:
        """What tells samples apart: their numbers in the data, and keys where these have some.

        Args:
            low: The first of them.
            arrays: As `read` returned them.
        """

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
        kinds = {name: (field.shape, field.dtype) for name, field in fields.items()}
        self._key = find_key(kinds, names)
        self._reader.select([*names, self._key])

    def __len__(self) -> int:
        return len(self._reader)

    def read(self, low: int, high: int) -> Arrays:
        """See `Samples`."""
        arrays = self._reader.read([(low, high)])
        check_values(self._reader, arrays, [(low, high)])
        return arrays

    def ids(self, low: int, arrays: Arrays) -> Columns:
        """See `Samples`."""
        count = len(next(iter(arrays.values())))
        return make_ids(np.arange(low, low + count), arrays, self._key)

    def close(self) -> None:
        """See `Samples`."""
        self._reader.close()


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
        else:
            source = open_source(paths, **(options or {}))
            samples = RawSamples(source, task, where, scored=scored)
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
                digest.update(content_sha256(path / MANIFEST).encode())
                continue
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            for file in files:
                found = file.stat()
                stamp = f"{file.absolute()}\0{found.st_size}\0{found.st_mtime_ns}\0"
                digest.update(stamp.encode(errors="surrogateescape"))
    digest.update(repr(sorted((name, str(value)) for name, value in options.items())).encode())
    return digest.hexdigest()
