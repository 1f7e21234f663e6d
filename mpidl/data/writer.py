"""Writes a sharded data set: every rank its own shards, or all ranks into one shared file."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mpidl.comm.context import Context
from mpidl.data import hdf5
from mpidl.data.importers import Arrays, Source, meaning_of
from mpidl.data.manifest import (
    MAX_CLASSES,
    Field,
    Manifest,
    Shard,
    Statistics,
    new_manifest,
    plain_name,
    save_manifest,
)
from mpidl.errors import DataError, MpidlError
from mpidl.files import file_sha256, reserve, sync_folder, writing

CHUNK_BYTES = 256 << 10  # a chunk holds some batches of small samples, or one large sample
READ_BYTES = 32 << 20  # how much of the source is in memory at a time
SPARSE_CLASSES = 1000  # labels with more classes must use a tenth of them, or they are something else: years, postcodes
MANY = 20_000  # different labels that each rank tells the others of
Progress = Callable[[int], None]


@dataclass(frozen=True)
class WriteOptions:
    """shards: number of files (ignored where shared); shared: one file for all ranks; compression: None, "gzip", "lzf"."""

    shards: int
    shared: bool = False
    compression: str | None = None
    label: str | None = None
    overwrite: bool = False


@dataclass
class _Tally:
    """What is learnt of a field while its samples pass by."""

    total: float = 0.0
    squares: float = 0.0
    count: int = 0
    lowest: int = 0
    highest: int = -1
    values: set[int] = dataclasses.field(default_factory=set)  # of labels, up to MANY
    smallest: float = math.inf  # of features
    largest: float = -math.inf

    def add(self, array: NDArray[Any], meaning: str) -> None:
        if meaning == "label" and array.size and array.dtype.kind in "iu":
            self.lowest, self.highest = (
                min(self.lowest, int(array.min())),
                max(self.highest, int(array.max())),
            )
            if len(self.values) <= MANY:
                self.values.update(np.unique(array)[: MANY + 1].tolist())
        elif meaning == "feature" and array.size:
            self.smallest, self.largest = (
                min(self.smallest, float(array.min())),
                max(self.largest, float(array.max())),
            )
            exact = array.astype(np.float64, copy=False).reshape(-1)
            self.total += float(exact.sum())
            self.squares += float(exact @ exact)
            self.count += exact.size


def write_dataset(
    source: Source,
    folder: Path,
    options: WriteOptions,
    context: Context,
    progress: Progress,
    *,
    note: Callable[[str], None] = lambda text: None,
) -> Manifest:
    """Shard `source` into `folder`, which appears complete or not at all. Collective; returns the manifest on every rank.

    progress: told the number of samples written, on every rank; note: told what is odd about the data, on every rank. Raises
    DataError on every rank together.
    """
    schema = context.on_root(lambda: _schema(source, options), "reading the schema of the source")
    partial = folder.with_name(folder.name + ".partial")
    context.on_root(lambda: _prepare(folder, partial, options), f"preparing {folder}")
    try:
        manifest = _write(source, partial, schema, options, context, progress, note)
        context.on_root(lambda: _publish(folder, partial, manifest), f"publishing {folder}")
    except MpidlError:
        if context.is_root:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return manifest


def _write(
    source: Source,
    partial: Path,
    schema: dict[str, Field],
    options: WriteOptions,
    context: Context,
    progress: Progress,
    note: Callable[[str], None],
) -> Manifest:
    tallies = {name: _Tally() for name in schema}
    shards: list[tuple[int, Shard]] = []
    if options.shared:
        _write_shared(source, partial / "shard-00000.h5", schema, context, tallies, progress)
        with context.fail_together("checking the shared file"):
            if context.is_root:
                shards = [(0, _describe(partial / "shard-00000.h5", source.samples))]
    else:
        with context.fail_together(f"writing {partial}"):
            for index in range(context.rank, options.shards, context.size):
                shards.append(
                    (
                        index,
                        _write_shard(source, partial, index, schema, options, tallies, progress),
                    )
                )
    ordered = [
        shard
        for _, shard in sorted(item for part in context.allgather_object(shards) for item in part)
    ]
    parts = context.allgather_object(tallies)
    with context.fail_together("describing the fields"):
        fields = _finish_fields(schema, parts, source, note)
    return new_manifest("shared" if options.shared else "shards", fields, tuple(ordered))


def _schema(source: Source, options: WriteOptions) -> dict[str, Field]:
    if source.samples < 1:
        raise DataError("the source holds no samples", remedy="check the input files")
    if not options.shared and not 1 <= options.shards <= source.samples:
        raise DataError(
            f"cannot cut {source.samples} samples into {options.shards} shards",
            remedy="choose another --shards",
        )
    if options.compression and options.shared:
        raise DataError(
            "a shared file cannot be compressed", remedy="leave out --compress or --shared"
        )
    fields = {}
    for name, array in source.read(0, 1).items():
        stored = _storable(array)
        if not plain_name(name):
            raise DataError(
                f"field {name!r} cannot have this name", remedy="choose a name without slashes"
            )
        if stored.dtype.kind not in "biuf":
            raise DataError(
                f"field {name!r} has dtype {array.dtype}, which cannot be trained on",
                remedy="convert it to numbers; names of classes with numpy.unique(y, return_inverse=True)[1]",
            )
        fields[name] = Field(
            stored.dtype.name,
            array.shape[1:],
            meaning_of(name, array, source.label or options.label),
        )
    return fields


def _storable(array: NDArray[Any]) -> NDArray[Any]:
    """Booleans as bytes, label bytes stay bytes, anything else in native byte order."""
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _prepare(folder: Path, partial: Path, options: WriteOptions) -> None:
    if folder.exists() and not options.overwrite:
        raise DataError(
            "exists already", where=str(folder), remedy="choose another --out, or add --overwrite"
        )
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)


def _publish(folder: Path, partial: Path, manifest: Manifest) -> None:
    save_manifest(partial, manifest)
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    sync_folder(folder.parent)


def _ranges(start: int, stop: int, schema: dict[str, Field]) -> Iterator[tuple[int, int]]:
    step = max(1, READ_BYTES // max(1, sum(field.sample_bytes for field in schema.values())))
    for low in range(start, stop, step):
        yield low, min(low + step, stop)


def _create(file: Any, name: str, field: Field, samples: int, compression: str | None) -> None:
    chunk = max(1, min(samples, CHUNK_BYTES // max(1, field.sample_bytes)))
    options: dict[str, Any] = (
        {"compression": compression, "shuffle": True}
        if compression
        else {"dcpl": hdf5.early_allocation()}
    )
    file.create_dataset(
        name, (samples, *field.shape), field.dtype, chunks=(chunk, *field.shape), **options
    )


def _fill(
    file: Any,
    first: int,
    source: Source,
    samples: tuple[int, int],
    schema: dict[str, Field],
    tallies: dict[str, _Tally],
    progress: Progress,
) -> None:
    """Copy the samples [start, stop) of the source into a file whose row 0 is sample `first`."""
    for low, high in _ranges(*samples, schema):
        for name, array in _checked(source, low, high, schema, tallies).items():
            file[name][low - first : high - first] = array
        hdf5.check_written(file)
        progress(high - low)


def _checked(
    source: Source, low: int, high: int, schema: dict[str, Field], tallies: dict[str, _Tally]
) -> Arrays:
    arrays = {name: _storable(array) for name, array in source.read(low, high).items()}
    for name, field in schema.items():
        if arrays[name].dtype.name != field.dtype or arrays[name].shape[1:] != field.shape:
            raise DataError(
                f"field {name!r} changes its dtype or shape at sample {low}",
                remedy="make the source uniform",
            )
        _refuse_nonfinite(name, arrays[name], low)
        tallies[name].add(arrays[name], field.meaning)
    return arrays


def _refuse_nonfinite(name: str, array: NDArray[Any], low: int) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array.sum(dtype=np.float64)):
        bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        if bad.any():
            raise DataError(
                f"field {name!r} of sample {low + int(bad.argmax())} of the source holds a NaN or an infinity",
                remedy="remove or repair that sample",
            )


def _write_shard(
    source: Source,
    folder: Path,
    index: int,
    schema: dict[str, Field],
    options: WriteOptions,
    tallies: dict[str, _Tally],
    progress: Progress,
) -> Shard:
    start, stop = (
        index * source.samples // options.shards,
        (index + 1) * source.samples // options.shards,
    )
    path = folder / f"shard-{index:05d}.h5"
    with writing(path), hdf5.open_file(path, "w") as file:
        for name, field in schema.items():
            _create(file, name, field, stop - start, options.compression)
        _fill(file, start, source, (start, stop), schema, tallies, progress)
    return _describe(path, stop - start)


def _write_shared(
    source: Source,
    path: Path,
    schema: dict[str, Field],
    context: Context,
    tallies: dict[str, _Tally],
    progress: Progress,
) -> None:
    """Rank 0 creates the file; all ranks fill their hyperslabs through mpio, or rank 0 alone where h5py is serial."""
    parallel = hdf5.is_parallel() and context.size > 1
    writers = context.size if parallel else 1

    def create() -> None:
        with writing(path), hdf5.open_file(path, "w") as file:
            for name, field in schema.items():
                _create(file, name, field, source.samples, None)
        with writing(path):
            reserve(path, path.stat().st_size)

    context.on_root(create, f"creating {path}")
    file = hdf5.open_file(path, "r+", comm=context.comm) if parallel else None
    with context.fail_together(f"writing {path}"), writing(path):
        if context.rank < writers:
            start, stop = (
                context.rank * source.samples // writers,
                (context.rank + 1) * source.samples // writers,
            )
            with nullcontext(file) if parallel else hdf5.open_file(path, "r+") as target:
                _fill(target, 0, source, (start, stop), schema, tallies, progress)
    if file is not None:
        file.close()


def _describe(path: Path, samples: int) -> Shard:
    return Shard(path.name, samples, path.stat().st_size, file_sha256(path))


def _finish_fields(
    schema: dict[str, Field],
    parts: list[dict[str, _Tally]],
    source: Source,
    note: Callable[[str], None],
) -> dict[str, Field]:
    """Add what was learnt: classes of labels, mean and standard deviation of features."""
    fields = {}
    for name, found in schema.items():
        tallies = [part[name] for part in parts]
        if found.meaning == "label":
            classes = _classes(name, found, tallies, source, note)
            found = msgspec.structs.replace(
                found, classes=classes, class_names=source.class_names if classes else None
            )
        elif found.meaning == "feature":
            found = msgspec.structs.replace(found, statistics=_statistics(name, tallies, note))
        fields[name] = found
    if not any(found.meaning == "label" for found in fields.values()):
        others = [name for name, found in fields.items() if found.meaning == "other"]
        known = ", ".join(source.candidates or others or fields)
        note(
            f"no field is a label, and mpidl train needs one: shard again with --label NAME, one of {known}"
        )
    return fields


def _statistics(name: str, tallies: list[_Tally], note: Callable[[str], None]) -> Statistics:
    count = sum(tally.count for tally in tallies)
    mean = sum(tally.total for tally in tallies) / count
    variance = sum(tally.squares for tally in tallies) / count - mean * mean
    smallest, largest = (
        min(tally.smallest for tally in tallies),
        max(tally.largest for tally in tallies),
    )
    if smallest == largest:  # the variance of such sums may be a little above 0
        note(f"the feature {name!r} is {smallest:g} in all samples: nothing can be learnt from it")
        return Statistics.sealed(smallest, 0.0)
    return Statistics.sealed(mean, float(np.sqrt(max(variance, 0.0))))


def _classes(
    name: str, found: Field, tallies: list[_Tally], source: Source, note: Callable[[str], None]
) -> int | None:
    """The number of classes of a label; None for real numbers. Raises DataError for numbers that cannot be meant as classes."""
    if np.dtype(found.dtype).kind == "f":
        note(
            f"the label {name!r} holds real numbers, not classes: mpidl train cannot use it (it trains classifiers; "
            "regression: docs/models.md)"
        )
        return None
    lowest, highest = (
        min(tally.lowest for tally in tallies),
        max(tally.highest for tally in tallies),
    )
    if lowest < 0:
        raise DataError(
            f"label {name!r} has the negative value {lowest}", remedy="number the classes from 0"
        )
    values: set[int] = set().union(*(tally.values for tally in tallies))
    classes, one = max(highest + 1, len(source.class_names or ())), math.prod(found.shape) == 1
    counted = one and len(values) <= MANY
    if classes > MAX_CLASSES or (counted and classes > max(SPARSE_CLASSES, 10 * len(values))):
        some = f"{len(values):,} different values" if counted else "values"
        rest = f", of which {classes - len(values):,} have no sample" if counted else ""
        raise DataError(
            f"label {name!r} has {some} from {min(values):,} to {highest:,}: as classes numbered from 0 they would be "
            f"{classes:,}{rest}",
            remedy="number the classes from 0 without gaps: numpy.unique(y, return_inverse=True)[1]; numbers to be "
            "predicted (regression) are not classes",
        )
    if counted and len(values) < classes:
        empty = [str(value) for value in range(classes) if value not in values]
        shown = ", ".join(empty[:10]) + (", ..." if len(empty) > 10 else "")
        note(f"{len(empty)} of the {classes} classes in {name!r} have no sample: {shown}")
    if one and source.samples >= 20 and 2 * len(values) > source.samples:
        number = f"{'' if counted else 'at least '}{len(values):,}"
        note(
            f"{name!r} has {number} different values in {source.samples:,} samples: with one or two samples a class nothing "
            "can be learnt; numbers to be predicted (regression) are not classes"
        )
    return classes
