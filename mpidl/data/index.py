"""Makes a data set of existing HDF5 and NetCDF-4 files in place: nothing but a manifest."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from mpidl.comm.context import Context
from mpidl.data.chunks import repack_command
from mpidl.data.fields import Note, Tally, complete_fields, infer_fields
from mpidl.data.formats.channels import channels_last
from mpidl.data.formats.source import Source
from mpidl.data.in_place import Found, check_alike, examine
from mpidl.data.manifest import NAME, Arrays, Field, Manifest, Shard, new_manifest, save_manifest
from mpidl.data.missing import Missing
from mpidl.data.reader import Reader
from mpidl.errors import DataError, MpidlError
from mpidl.files import partial_path, publish, reading
from mpidl.security.sealed_file import content_sha256

READ_BYTES = 32 << 20  # of samples, in memory at a time
Progress = Callable[[int, int], None]
Pieces = list[tuple[int, int]]


@dataclass(frozen=True)
class IndexOptions:
    """How to index files.

    Attributes:
        features: Names or paths of datasets that are features; empty: see `roles`.
        labels: Of those that are labels; empty: by usual names.
        rows: The samples to take, of those of all files in order: (start, stop), stop None: to the
            end.
        checksum: Whether to store the SHA-256 of each file.
        statistics: Whether to compute mean and standard deviation of features.
        sample: The share of the samples that these are estimated from.
        overwrite: Whether to replace an existing data set.
    """

    features: Sequence[str] = ()
    labels: Sequence[str] = ()
    rows: tuple[int, int | None] = (0, None)
    checksum: bool = False
    statistics: bool = True
    sample: float = 1.0
    overwrite: bool = False


@dataclass
class Indexed:
    """What indexing found.

    Attributes:
        manifest: As it was saved.
        missing: Of each field that was read.
        slow: Path of a file -> what is slow about its chunks, and the command that mends it.
    """

    manifest: Manifest
    missing: dict[str, Missing] = field(default_factory=dict)
    slow: dict[str, dict[str, Any]] = field(default_factory=dict)


def index_files(
    paths: Sequence[Path],
    folder: Path,
    options: IndexOptions,
    context: Context,
    *,
    note: Note = lambda text: None,
    progress: Progress = lambda count, total: None,
) -> Indexed:
    """Make the data set `folder` of files that stay where they are. Collective.

    Args:
        paths: HDF5 or NetCDF-4 files, in the order of their samples.
        folder: Appears complete or not at all.
        options: How.
        context: The ranks; they divide the samples that are read.
        note: Called on every rank, with a sentence for each anomaly in the data.
        progress: Called on every rank, with the number of samples read, and of those that it will
            read in all.

    Returns:
        On every rank.

    Raises:
        DataError: On every rank: a file, the options or the file system do not allow it.
    """
    plan = context.on_root(lambda: _plan(paths, folder, options), "looking into the files", _Plan)
    for text in plan.notes:
        note(text)
    partial = partial_path(folder)
    try:
        context.on_root(lambda: _write(partial, plan.manifest), f"writing {partial}")
        indexed = _Pass(partial, plan, options, context, progress).run(note)
        context.on_root(lambda: _publish(folder, partial, indexed), f"publishing {folder}")
    except MpidlError:
        if context.is_root:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return indexed


@dataclass
class _Plan:
    """What rank 0 finds without reading data.

    Attributes:
        manifest: Without classes, statistics and checksums.
        fills: Field -> the number that stands for missing values.
        slow: As in `Indexed`.
        notes: For people.
    """

    manifest: Manifest
    fills: dict[str, float | None]
    slow: dict[str, dict[str, Any]]
    notes: list[str]


def _plan(paths: Sequence[Path], folder: Path, options: IndexOptions) -> _Plan:
    if not 0 < options.sample <= 1:
        raise DataError(
            f"--sample {options.sample} is no share of the samples",
            remedy="choose more than 0 and at most 1",
        )
    if folder.exists() and not options.overwrite:
        raise DataError(
            "exists already", where=str(folder), remedy="choose another --out, or add --overwrite"
        )
    if folder.exists() and not (folder / NAME).is_file():
        raise DataError("is no data set", where=str(folder), remedy="choose another --out")
    wanted = [*options.features, *(options.labels if options.features else ())]
    files = [examine(path, wanted) for path in paths]
    check_alike(files)
    notes: list[str] = []
    fields, chosen = _roles(files[0], options, notes)
    files = [found.only(chosen) for found in files]
    manifest = new_manifest("in-place", fields, _take_rows(files, options.rows))
    if manifest.samples < 1:
        raise DataError(
            f"the files hold {sum(found.samples for found in files):,} samples, none of them in "
            f"the rows {options.rows}",
            remedy="choose other --rows",
        )
    notes += _remarks(files[0])
    fills = {name: variable.fill for name, variable in files[0].variables.items()}
    return _Plan(manifest, fills, _slow_files(files), notes)


def _roles(
    first: Found, options: IndexOptions, notes: list[str]
) -> tuple[dict[str, Field], list[str]]:
    """The fields with their roles, from dtypes and shapes.

    Named features and labels are what they are named; without names of features every dataset is a
    field that looks like a feature or a label.
    """

    def read(start: int, stop: int) -> Arrays:  # no more than dtypes and shapes are asked for
        return {
            name: np.broadcast_to(
                np.zeros((), variable.dtype), (stop - start, *variable.layout.shape[1:])
            )
            for name, variable in first.variables.items()
        }

    labels = [first.field(name) for name in options.labels]
    features = [first.field(name) for name in options.features]
    label = labels[0] if labels else ("" if features else None)
    units = {name: var.units for name, var in first.variables.items() if var.units}
    source = Source(1, read, label=label, units=units)
    fields = infer_fields(source)
    given = {**dict.fromkeys(features, "feature"), **dict.fromkeys(labels, "label")}
    for name, role in given.items():
        fields[name] = replace(fields[name], role=role)
    others = [name for name, found in fields.items() if found.role == "other"]
    if others:
        notes.append(
            f"left out, neither features nor labels by name and shape: {', '.join(others)}; "
            "choose fields with --feature and --label"
        )
    try:
        channels_last(source, None, str(first.path))
    except DataError as error:
        notes.append(f"{error.what}; to transpose them use 'mpidl shard --channels-first'")
    chosen = [name for name in fields if name not in others]
    if not chosen:
        raise DataError(
            f"no dataset is a feature by its shape: {', '.join(others)}",
            where=str(first.path),
            remedy="name one with --feature",
        )
    return {name: fields[name] for name in chosen}, chosen


def _take_rows(files: Sequence[Found], rows: tuple[int, int | None]) -> tuple[Shard, ...]:
    """The part of each file that lies in a range of all samples; files without any are left out."""
    shards, before = [], 0
    total = sum(found.samples for found in files)
    start, stop, _ = slice(*rows).indices(total)
    for found in files:
        low, high = max(start - before, 0), min(stop - before, found.samples)
        if low < high:
            shards.append(found.shard(low, high))
        before += found.samples
    return tuple(shards)


def _remarks(first: Found) -> list[str]:
    notes = []
    packed = [name for name, variable in first.variables.items() if variable.packed]
    if packed:
        notes.append(
            f"{', '.join(packed)}: stored as packed numbers (scale_factor, add_offset), and read "
            "as they are stored; normalized inputs are the same, but predicted values are not in "
            "the units of the file"
        )
    left = [f"{name} ({why})" for name, why in first.left_out.items()]
    if left:
        more = f" and {len(left) - 8} others" if len(left) > 8 else ""
        notes.append(f"cannot be fields: {', '.join(left[:8])}{more}")
    return notes


def _slow_files(files: Sequence[Found]) -> dict[str, dict[str, Any]]:
    """Files from which reading samples is slow, because of their chunks."""
    slow = {}
    for found in files:
        layouts = {found.paths[name]: var.layout for name, var in found.variables.items()}
        bad = {path: layout for path, layout in layouts.items() if layout.is_bad}
        if bad:
            slow[str(found.path)] = {
                "fields": {path: layout.describe_cost() for path, layout in bad.items()},
                "command": repack_command(found.path, bad),
            }
    return slow


def _write(folder: Path, manifest: Manifest) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    save_manifest(folder, manifest)


def _publish(folder: Path, partial: Path, indexed: Indexed) -> None:
    save_manifest(partial, indexed.manifest)
    if folder.exists():
        shutil.rmtree(folder)
    publish(partial, folder)


class _Pass:
    """Reads the samples of an unfinished data set once, ranks dividing them; see `index_files`."""

    def __init__(
        self,
        folder: Path,
        plan: _Plan,
        options: IndexOptions,
        context: Context,
        progress: Progress,
    ) -> None:
        self.folder = folder
        self.plan = plan
        self.options = options
        self.context = context
        self.progress = progress
        self.total = 0

    def run(self, note: Note) -> Indexed:
        """The complete manifest. Collective."""
        manifest = self.plan.manifest
        labels = [name for name, field in manifest.fields.items() if field.role == "label"]
        features = [name for name in manifest.fields if name not in labels]
        samples = manifest.samples
        count = max(1, math.ceil(samples * self.options.sample))
        parts = [(labels, samples)]
        parts += [(features, count)] if self.options.statistics else []
        tallies = {name: Tally.of(field) for name, field in manifest.fields.items()}
        missing: dict[str, Missing] = {}
        self.total = sum(rows // self.context.size for names, rows in parts if names)
        for names, rows in parts:
            if names:
                missing |= self._read(names, rows, tallies)
        fields = self._complete(tallies, missing, note)
        shards = self._checksums() if self.options.checksum else manifest.shards
        sampled = count if self.options.statistics and count < samples else None
        manifest = replace(manifest, fields=fields, shards=shards, sampled=sampled)
        return Indexed(manifest, missing, self.plan.slow)

    def _read(
        self, names: Sequence[str], rows: int, tallies: dict[str, Tally]
    ) -> dict[str, Missing]:
        """Count in the fields `names` of `rows` samples, evenly spaced. Collective."""
        own = {name: Missing() for name in names}
        reader = Reader(self.folder, context=self.context, driver="posix", fields=names)
        with self.context.fail_together("reading the samples"), reader:
            memory: Arrays | None = None
            for pieces in self._pieces(reader, rows):
                memory = reader.read(pieces, memory)
                for name, array in memory.items():
                    good = own[name].add(array, self.plan.fills.get(name))
                    tallies[name].add(good, reader.fields[name].role)
                self.progress(sum(stop - start for start, stop in pieces), self.total)
        everywhere = self.context.allgather_object(own, dict[str, Missing])
        found = {name: Missing() for name in names}
        for part in everywhere:
            found = {name: found[name].merged(part[name]) for name in names}
        return found

    def _pieces(self, reader: Reader, rows: int) -> Iterator[Pieces]:
        """This rank's share of `rows` evenly spaced samples, in amounts that fit in memory."""
        rank, size = self.context.rank, self.context.size
        samples = len(reader)
        low, high = rank * rows // size, (rank + 1) * rows // size
        step = max(1, READ_BYTES // sum(field.sample_bytes for field in reader.fields.values()))
        for start in range(low, high, step):
            stop = min(start + step, high)
            if rows == samples:
                yield [(start, stop)]
            else:
                chosen = [index * samples // rows for index in range(start, stop)]
                yield [(sample, sample + 1) for sample in chosen]

    def _complete(
        self, tallies: dict[str, Tally], missing: Mapping[str, Missing], note: Note
    ) -> dict[str, Field]:
        """Classes and statistics of the fields that have good samples. Collective."""
        fields = self.plan.manifest.fields
        empty = [name for name in fields if name not in missing or not missing[name].good]
        tallies |= {name: Tally() for name in empty}
        known = fields | {name: replace(fields[name], role="other") for name in empty}
        parts = self.context.allgather_object(tallies, dict[str, Tally])
        source = Source(self.plan.manifest.samples, lambda start, stop: {})
        with self.context.fail_together("describing the fields"):
            completed = complete_fields(known, parts, source, note)
        for name, found in missing.items():
            if found.samples:
                note(found.describe(name, self.plan.fills.get(name)))
        return {name: replace(completed[name], role=field.role) for name, field in fields.items()}

    def _checksums(self) -> tuple[Shard, ...]:
        """The files with their SHA-256, ranks dividing the files. Collective."""
        shards = self.plan.manifest.shards
        with self.context.fail_together("computing checksums"):
            own = {}
            for index in range(self.context.rank, len(shards), self.context.size):
                with reading(shards[index].file):
                    own[index] = content_sha256(Path(shards[index].file))
        everywhere = self.context.allgather_object(own, dict[int, str])
        sums = {key: value for part in everywhere for key, value in part.items()}
        return tuple(replace(shard, sha256=sums[index]) for index, shard in enumerate(shards))
