"""Checkpoints: one HDF5 file with the flat buffers, written by all ranks, beside and renamed, with checksums.

A file under its final name is complete: every dataset is there, forced to disk, and its SHA-256 stands in the metadata.
HDF5 alone cannot tell (a killed writer can leave a file that opens and reads as zeros).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mpidl.comm.context import Context
from mpidl.data import hdf5
from mpidl.data.manifest import sync_folder
from mpidl.errors import CheckpointError, MpidlError

VERSION = 1
BEST = "best.h5"
META_BYTES = 1 << 16  # room for the metadata, reserved with the data
_NAME = re.compile(r"step-(\d{8,})\.h5")
Buffers = dict[str, NDArray[Any]]


class Part(msgspec.Struct, frozen=True):
    """The checksum of elements [start, stop) of a dataset."""

    dataset: str
    start: int
    stop: int
    sha256: str


class Meta(msgspec.Struct, frozen=True):
    """What a checkpoint says of itself. step: finished steps; epoch, epoch_step: where the data goes on."""

    version: int
    step: int
    epoch: int
    epoch_step: int
    config: dict[str, Any]
    inputs: dict[str, Any]
    parameters: dict[str, tuple[int, list[int]]]
    metrics: dict[str, float]
    best_accuracy: float
    loss_scale: float = 1.0
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A loaded and verified checkpoint."""

    path: Path
    meta: Meta
    buffers: Buffers


def save(folder: Path, meta: Meta, buffers: Buffers, context: Context, *, keep: int, best: bool) -> Path:
    """Write `folder`/step-N.h5; then drop all but the `keep` newest, and point best.h5 at it if it is the best. Collective.

    buffers: name -> (n,) host arrays, equal on all ranks. An error leaves earlier checkpoints as they are and is raised on
    every rank as CheckpointError.
    """
    path = folder / f"step-{meta.step:08d}.h5"
    partial = path.with_name(path.name + ".partial")
    try:
        context.on_root(lambda: _create(partial, buffers), f"creating {partial}")
        parts = _write_parts(partial, buffers, context)
        complete = msgspec.structs.replace(meta, parts=tuple(parts))
        context.on_root(lambda: _publish(path, partial, complete, keep, best), f"finishing {path}")
    except MpidlError as error:
        if context.is_root:
            partial.unlink(missing_ok=True)
        raised = CheckpointError(
            f"the checkpoint could not be written: {error.what}",
            where=str(path),
            remedy=f"{error.remedy or 'check the file system'}; earlier checkpoints in {folder} are intact: use --resume",
        )
        raised.agreed = error.agreed
        raise raised from error
    return path


def _create(partial: Path, buffers: Buffers) -> None:
    """Create the file and reserve its blocks, so that a full disk is noticed here, not in mid-write."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    with hdf5.open_file(partial, "w") as file:
        for name, array in buffers.items():
            file.create_dataset(name, array.shape, array.dtype, dcpl=hdf5.early_allocation())
    with open(partial, "rb+") as raw:
        try:
            os.posix_fallocate(raw.fileno(), 0, partial.stat().st_size + META_BYTES)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise


def _write_parts(partial: Path, buffers: Buffers, context: Context) -> list[Part]:
    """Every rank writes and hashes its slice of every buffer; rank 0 all of them where h5py is serial."""
    parallel = hdf5.is_parallel() and context.size > 1
    writers = context.size if parallel else 1
    file = hdf5.open_file(partial, "r+", comm=context.comm) if parallel else None
    parts: list[Part] = []
    with context.together(f"writing {partial}"):
        if context.rank < writers:
            target = file or hdf5.open_file(partial, "r+")
            for name, array in buffers.items():
                start, stop = context.rank * array.size // writers, (context.rank + 1) * array.size // writers
                if stop > start:
                    target[name][start:stop] = array[start:stop]
                parts.append(Part(name, start, stop, _digest(array[start:stop])))
            if not parallel:
                target.close()
    if file is not None:
        file.close()
    return [part for own in context.gather(parts) for part in own]


def _digest(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).hexdigest()


def _publish(path: Path, partial: Path, meta: Meta, keep: int, best: bool) -> None:
    encoded = msgspec.json.encode(meta)
    with hdf5.open_file(partial, "r+") as file:
        file.attrs["meta"] = np.frombuffer(encoded, np.uint8)
        file.attrs["meta_sha256"] = hashlib.sha256(encoded).hexdigest()
    with open(partial, "rb+") as raw:
        os.fsync(raw.fileno())
    partial.replace(path)
    if best:
        _link(path, path.with_name(BEST))
    sync_folder(path.parent)
    for old in list_checkpoints(path.parent)[keep:]:
        old.unlink(missing_ok=True)


def _link(path: Path, name: Path) -> None:
    """A second name for the same file; a copy where the file system knows no hard links."""
    beside = name.with_name(name.name + ".partial")
    beside.unlink(missing_ok=True)
    try:
        os.link(path, beside)
    except OSError:
        shutil.copyfile(path, beside)
    beside.replace(name)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, newest first; best.h5 is not among them."""
    found = [path for path in folder.glob("step-*.h5") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.stem[5:]), reverse=True)


def read(path: Path) -> Checkpoint:
    """Load and verify one checkpoint. Raises CheckpointError naming the file and what is wrong with it."""
    damaged = "the file is damaged: use an earlier checkpoint"
    try:
        with hdf5.open_file(path) as file:
            if "meta" not in file.attrs:
                raise CheckpointError("is not a checkpoint of mpidl, or was never finished", where=str(path), remedy=damaged)
            encoded = np.asarray(file.attrs["meta"]).tobytes()
            if hashlib.sha256(encoded).hexdigest() != file.attrs["meta_sha256"]:
                raise CheckpointError("the checksum of its metadata is wrong", where=str(path), remedy=damaged)
            meta = msgspec.json.decode(encoded, type=Meta)
            if meta.version != VERSION:
                raise CheckpointError(
                    f"has version {meta.version}, this mpidl reads version {VERSION}",
                    where=str(path),
                    remedy="use that mpidl",
                )
            buffers = {name: hdf5.trusted_dataset(file, name, path)[...] for name in file}
    except (OSError, msgspec.MsgspecError) as error:
        raise CheckpointError(f"cannot be read: {error}", where=str(path), remedy=damaged) from error
    _verify(path, meta, buffers)
    return Checkpoint(path, meta, buffers)


def _verify(path: Path, meta: Meta, buffers: Buffers) -> None:
    covered = dict.fromkeys(buffers, 0)
    for part in meta.parts:
        if part.dataset not in buffers or _digest(buffers[part.dataset][part.start : part.stop]) != part.sha256:
            raise CheckpointError(
                f"the checksum of {part.dataset!r}[{part.start}:{part.stop}] is wrong",
                where=str(path),
                remedy="the file is damaged: use an earlier checkpoint",
            )
        covered[part.dataset] += part.stop - part.start
    if any(covered[name] != array.size for name, array in buffers.items()):
        raise CheckpointError("its checksums do not cover its data", where=str(path), remedy="use an earlier checkpoint")


def load_latest(folder: Path, warn: Callable[[str], None]) -> Checkpoint:
    """The newest checkpoint that is intact; damaged ones are passed over with a warning. Raises CheckpointError if none is."""
    for path in list_checkpoints(folder):
        try:
            return read(path)
        except MpidlError as error:
            warn(f"passing over {path}: {error.what}")
    raise CheckpointError("no usable checkpoint found", where=str(folder), remedy="train without --resume")


def load_for(context: Context, find: Callable[[], Checkpoint], doing: str) -> Checkpoint:
    """Rank 0 finds, reads and verifies a checkpoint; every rank gets it. Collective."""
    loaded: Checkpoint | None = None
    with context.together(doing):
        if context.is_root:
            loaded = find()
    head = context.broadcast(
        (loaded.path, loaded.meta, {k: (v.size, v.dtype) for k, v in loaded.buffers.items()}) if loaded else None
    )
    assert head is not None
    path, meta, shapes = head
    buffers = loaded.buffers if loaded else {name: np.empty(size, dtype) for name, (size, dtype) in shapes.items()}
    for array in buffers.values():
        context.comm.Bcast(array, root=0)
    return Checkpoint(path, meta, buffers)
