"""Writes a sharded data set: every rank its own shards, or all ranks into one shared file."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.comm.context import Context
from mpidl.data import hdf5
from mpidl.data.fields import (
    Note,
    Tally,
    complete_fields,
    infer_fields,
    note_absent_classes,
    to_storable,
)
from mpidl.data.formats.source import Source
from mpidl.data.manifest import Arrays, Field, Manifest, Shard, new_manifest, save_manifest
from mpidl.errors import DataError, MpidlError
from mpidl.files import partial_path, publish, reserve, sync, writing
from mpidl.security.sealed_file import content_sha256, content_size
from mpidl.security.sealing_keys import Envelope, envelope_for

CHUNK_BYTES = 256 << 10  # a chunk holds some batches of small samples, or one large sample
READ_BYTES = 32 << 20  # of the source, in memory at a time
SHARED_FILE = "shard-00000.h5"
Progress = Callable[[int], None]


@dataclass(frozen=True)
class WriteOptions:
    """How to write a data set.

    Attributes:
        shards: Number of files; ignored where they are shared.
        shared: Whether all ranks write one file.
        compression: None, "gzip" or "lzf".
        overwrite: Whether to replace an existing data set.
        seal_for: Recipients of the sealed data set; none: it is not sealed.
    """

    shards: int
    shared: bool = False
    compression: str | None = None
    overwrite: bool = False
    seal_for: tuple[str, ...] = ()

    def envelope(self) -> Envelope | None:
        """A new key for the recipients, if there are any.

        Raises:
            SecurityError: One is unknown.
            DataError: Several ranks would write one file.
        """
        if not self.seal_for:
            return None
        if self.shared:
            raise DataError(
                "a shared file cannot be sealed while several ranks write it",
                remedy="leave out --shared, or seal it afterwards: mpidl seal",
            )
        return envelope_for(self.seal_for)


def write_dataset(
    source: Source,
    folder: Path,
    options: WriteOptions,
    context: Context,
    progress: Progress,
    *,
    note: Note = lambda text: None,
) -> Manifest:
    """Shard `source` into `folder`, which appears complete or not at all. Collective.

    Args:
        source: Raw data.
        folder: The data set to make.
        options: How.
        context: The ranks.
        progress: Called on every rank, with the number of samples written.
        note: Called on every rank, with a sentence for each anomaly in the data.

    Returns:
        The manifest, on every rank.

    Raises:
        DataError: On every rank: the source, the options or the file system do not allow it.
    """
    return write_parts({"": source}, folder, options, context, progress, note=note)[""]


def write_parts(
    parts: Mapping[str, Source],
    folder: Path,
    options: WriteOptions,
    context: Context,
    progress: Progress,
    *,
    note: Note = lambda text: None,
) -> dict[str, Manifest]:
    """Shard parts of one source into folders below `folder`, all or none of them. Collective.

    The classes are those of all parts; statistics are each part's own. For the arguments see
    `write_dataset`.

    Args:
        parts: Name of the folder -> its samples; the name "" is `folder` itself.

    Returns:
        The manifest of each part, on every rank.
    """
    with context.fail_together("sealing for the recipients"):
        seal = options.envelope()
    plans = {
        name: context.on_root(
            partial(_plan, part, options), "reading the first sample", dict[str, Field]
        )
        for name, part in parts.items()
    }
    unfinished = partial_path(folder)
    context.on_root(lambda: _prepare(folder, unfinished, options, parts), f"preparing {folder}")
    try:
        writers = {
            name: _Writer(part, unfinished / name, plans[name], options, context, progress, seal)
            for name, part in parts.items()
        }
        for writer in writers.values():
            writer.write()
        manifests = {name: writers[name].describe(writers, note) for name in parts}
        context.on_root(
            lambda: _publish(folder, unfinished, manifests, seal), f"publishing {folder}"
        )
    except MpidlError:
        if context.is_root:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return manifests


def _plan(source: Source, options: WriteOptions) -> dict[str, Field]:
    fields = infer_fields(source)
    if not options.shared and not 1 <= options.shards <= source.samples:
        raise DataError(
            f"cannot divide {source.samples} samples into {options.shards} shards",
            remedy="choose another --shards",
        )
    if options.compression and options.shared:
        raise DataError(
            "a shared file cannot be compressed", remedy="leave out --compress or --shared"
        )
    return fields


def _prepare(folder: Path, unfinished: Path, options: WriteOptions, parts: Iterable[str]) -> None:
    if folder.exists() and not options.overwrite:
        raise DataError(
            "exists already", where=str(folder), remedy="choose another --out, or add --overwrite"
        )
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    for name in parts:
        (unfinished / name).mkdir(exist_ok=True)


def _publish(
    folder: Path, unfinished: Path, manifests: Mapping[str, Manifest], seal: Envelope | None
) -> None:
    for name, manifest in manifests.items():
        save_manifest(unfinished / name, manifest, seal)
    if folder.exists():
        shutil.rmtree(folder)
    publish(unfinished, folder)


class _Writer:
    """One rank's part in writing a data set; for the arguments see `write_dataset`."""

    def __init__(
        self,
        source: Source,
        folder: Path,
        fields: dict[str, Field],
        options: WriteOptions,
        context: Context,
        progress: Progress,
        seal: Envelope | None,
    ) -> None:
        self.seal = seal
        self.source = source
        self.folder = folder
        self.fields = fields
        self.options = options
        self.context = context
        self.progress = progress
        self.shards: tuple[Shard, ...] = ()
        self.everywhere: list[dict[str, Tally]] = []
        self.tallies = {name: Tally.of(field) for name, field in fields.items()}

    def write(self) -> None:
        """Write all files. Collective."""
        shards = self._write_shared() if self.options.shared else self._write_shards()
        everywhere = self.context.allgather_object(shards, list[tuple[int, Shard]])
        ordered = sorted((item for part in everywhere for item in part), key=lambda item: item[0])
        self.shards = tuple(shard for _, shard in ordered)
        self.everywhere = self.context.allgather_object(self.tallies, dict[str, Tally])

    def describe(self, writers: Mapping[str, _Writer], note: Note) -> Manifest:
        """The manifest, after all writers wrote: its classes are those of all. Collective."""
        others = [
            {name: replace(tally, moments=None) for name, tally in part.items()}
            for writer in writers.values()
            if writer is not self
            for part in writer.everywhere
        ]
        # The whole, for notes of how many classes there are for how many samples
        samples = sum(writer.source.samples for writer in writers.values())
        whole = replace(self.source, samples=samples)
        with self.context.fail_together("describing the fields"):
            together = [*self.everywhere, *others]
            fields = complete_fields(self.fields, together, whole, note)
            part = self.folder.name
            note_absent_classes(
                fields, self.everywhere, together, lambda text: note(f"{part}: {text}")
            )
        return new_manifest("shared" if self.options.shared else "shards", fields, self.shards)

    def _write_shards(self) -> list[tuple[int, Shard]]:
        with self.context.fail_together(f"writing {self.folder}"):
            own = range(self.context.rank, self.options.shards, self.context.size)
            return [(index, self._write_shard(index)) for index in own]

    def _write_shard(self, index: int) -> Shard:
        start, stop = _share(self.source.samples, index, self.options.shards)
        path = self.folder / f"shard-{index:05d}.h5"
        with writing(path):
            with hdf5.open_file(path, "w", seal=self.seal) as file:
                self._create(file, stop - start)
                file.flush()  # what HDF5 knows of the chunks: a sealed file writes it once
                self._fill(file, start, (start, stop))
            sync(path)
        return _describe(path, stop - start)

    def _write_shared(self) -> list[tuple[int, Shard]]:
        """Rank 0 creates the file; all ranks write their hyperslabs through mpio.

        Where h5py is serial rank 0 writes alone.
        """
        path = self.folder / SHARED_FILE
        parallel = hdf5.is_parallel(self.context.comm) and self.context.size > 1
        writers = self.context.size if parallel else 1
        self.context.on_root(lambda: self._create_shared(path), f"creating {path}")
        file = hdf5.open_file(path, "r+", comm=self.context.comm) if parallel else None
        with self.context.fail_together(f"writing {path}"), writing(path):
            if self.context.rank < writers:
                own = _share(self.source.samples, self.context.rank, writers)
                with nullcontext(file) if parallel else hdf5.open_file(path, "r+") as target:
                    self._fill(target, 0, own)
        if file is not None:
            file.close()
        with self.context.fail_together("checking the shared file"), writing(path):
            if not self.context.is_root:
                return []
            sync(path)
            return [(0, _describe(path, self.source.samples))]

    def _create_shared(self, path: Path) -> None:
        with writing(path):
            with hdf5.open_file(path, "w") as file:
                self._create(file, self.source.samples)
            reserve(path, path.stat().st_size)

    def _create(self, file: Any, samples: int) -> None:
        """Create the datasets, chunks of whole samples."""
        compression = self.options.compression
        options: dict[str, Any] = (
            {"compression": compression, "shuffle": True}
            if compression
            else {"dcpl": hdf5.early_allocation()}
        )
        for name, field in self.fields.items():
            chunk = max(1, min(samples, CHUNK_BYTES // max(1, field.sample_bytes)))
            shape, chunks = (samples, *field.shape), (chunk, *field.shape)
            file.create_dataset(name, shape, field.dtype, chunks=chunks, **options)

    def _fill(self, file: Any, first: int, samples: tuple[int, int]) -> None:
        """Copy samples [start, stop) of the source into a file whose row 0 is sample `first`."""
        for low, high in self._pieces(*samples):
            for name, array in self._read(low, high).items():
                file[name][low - first : high - first] = array
            hdf5.check_written(file)
            self.progress(high - low)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        sample_bytes = sum(field.sample_bytes for field in self.fields.values())
        step = max(1, READ_BYTES // max(1, sample_bytes))
        for low in range(start, stop, step):
            yield low, min(low + step, stop)

    def _read(self, low: int, high: int) -> Arrays:
        """Samples of the source, checked and counted."""
        arrays = {name: to_storable(array) for name, array in self.source.read(low, high).items()}
        for name, field in self.fields.items():
            if arrays[name].dtype.name != field.dtype or arrays[name].shape[1:] != field.shape:
                raise DataError(
                    f"field {name!r} changes its dtype or shape at sample "
                    f"{self.source.number(low)}",
                    remedy="make the source uniform",
                )
            _refuse_nonfinite(name, arrays[name], low, self.source)
            self.tallies[name].add(arrays[name], field.role)
        return arrays


def _refuse_nonfinite(name: str, array: NDArray[Any], low: int, source: Source) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array.sum(dtype=np.float64)):
        bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        if bad.any():
            number = source.number(low + int(bad.argmax()))
            raise DataError(
                f"field {name!r} of sample {number} of the source holds a NaN or an infinity",
                remedy="remove or repair that sample",
            )


def _share(samples: int, index: int, parts: int) -> tuple[int, int]:
    """The samples [start, stop) of one of equal parts."""
    return index * samples // parts, (index + 1) * samples // parts


def _describe(path: Path, samples: int) -> Shard:
    return Shard(path.name, samples, content_size(path, path.stat().st_size), content_sha256(path))
