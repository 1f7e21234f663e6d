"""Writes a sharded data set: every rank its own shards, or all ranks into one shared file."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.comm.context import Context
from mpidl.data import hdf5
from mpidl.data.fields import Note, Tally, complete_fields, infer_fields, to_storable
from mpidl.data.formats.source import Source
from mpidl.data.manifest import Arrays, Field, Manifest, Shard, new_manifest, save_manifest
from mpidl.errors import DataError, MpidlError
from mpidl.files import file_sha256, partial_path, publish, reserve, sync, writing

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
        label: The label field that the user names.
        overwrite: Whether to replace an existing data set.
    """

    shards: int
    shared: bool = False
    compression: str | None = None
    label: str | None = None
    overwrite: bool = False


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
    fields = context.on_root(lambda: _plan(source, options), "reading the first sample")
    partial = partial_path(folder)
    context.on_root(lambda: _prepare(folder, partial, options), f"preparing {folder}")
    try:
        writer = _Writer(source, partial, fields, options, context, progress)
        manifest = writer.write(note)
        context.on_root(lambda: _publish(folder, partial, manifest), f"publishing {folder}")
    except MpidlError:
        if context.is_root:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return manifest


def _plan(source: Source, options: WriteOptions) -> dict[str, Field]:
    fields = infer_fields(source, options.label)
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
    publish(partial, folder)


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
    ) -> None:
        self.source = source
        self.folder = folder
        self.fields = fields
        self.options = options
        self.context = context
        self.progress = progress
        self.tallies = {name: Tally() for name in fields}

    def write(self, note: Note) -> Manifest:
        """Write all files. Collective."""
        shards = self._write_shared() if self.options.shared else self._write_shards()
        everywhere = self.context.allgather_object(shards)
        ordered = sorted((item for part in everywhere for item in part), key=lambda item: item[0])
        parts = self.context.allgather_object(self.tallies)
        with self.context.fail_together("describing the fields"):
            fields = complete_fields(self.fields, parts, self.source, note)
        return new_manifest(
            "shared" if self.options.shared else "shards",
            fields,
            tuple(shard for _, shard in ordered),
        )

    def _write_shards(self) -> list[tuple[int, Shard]]:
        with self.context.fail_together(f"writing {self.folder}"):
            own = range(self.context.rank, self.options.shards, self.context.size)
            return [(index, self._write_shard(index)) for index in own]

    def _write_shard(self, index: int) -> Shard:
        start, stop = _share(self.source.samples, index, self.options.shards)
        path = self.folder / f"shard-{index:05d}.h5"
        with writing(path):
            with hdf5.open_file(path, "w") as file:
                self._create(file, stop - start)
                self._fill(file, start, (start, stop))
            sync(path)
        return _describe(path, stop - start)

    def _write_shared(self) -> list[tuple[int, Shard]]:
        """Rank 0 creates the file; all ranks write their hyperslabs through mpio.

        Where h5py is serial rank 0 writes alone.
        """
        path = self.folder / SHARED_FILE
        parallel = hdf5.is_parallel() and self.context.size > 1
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
                    f"field {name!r} changes its dtype or shape at sample {low}",
                    remedy="make the source uniform",
                )
            _refuse_nonfinite(name, arrays[name], low)
            self.tallies[name].add(arrays[name], field)
        return arrays


def _refuse_nonfinite(name: str, array: NDArray[Any], low: int) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array.sum(dtype=np.float64)):
        bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        if bad.any():
            raise DataError(
                f"field {name!r} of sample {low + int(bad.argmax())} of the source holds a NaN or "
                "an infinity",
                remedy="remove or repair that sample",
            )


def _share(samples: int, index: int, parts: int) -> tuple[int, int]:
    """The samples [start, stop) of one of equal parts."""
    return index * samples // parts, (index + 1) * samples // parts


def _describe(path: Path, samples: int) -> Shard:
    return Shard(path.name, samples, path.stat().st_size, file_sha256(path))
