"""Reads checkpoints: verified as a whole before any of it is used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mpidl.collectives.schedule import segments
from mpidl.comm import transport
from mpidl.comm.context import Context
from mpidl.data import hdf5
from mpidl.errors import CheckpointError, DataError, UnreadableError
from mpidl.files import reading
from mpidl.optim import RunState
from mpidl.train.checkpoint.format import (
    META,
    OWN,
    SHARED,
    VERSION,
    Buffers,
    Checkpoint,
    DamagedCheckpoint,
    Meta,
    Part,
    compute_digest,
)

READ_BYTES = 64 << 20  # of what is only verified, at a time
DAMAGED = "use an earlier checkpoint: this file is damaged, or it never was one"


def read(path: Path, *, inference: bool = False) -> Checkpoint:
    """Load and verify one checkpoint.

    `state.own` is only verified; `read_own` loads it.

    Args:
        path: Of the file.
        inference: It may be a quantized model.

    Raises:
        DamagedCheckpoint: The file is not what was written.
        CheckpointError: It cannot be read now, or not by this version.
    """
    with _opened(path) as file:
        meta = _read_meta(file, path)
        if meta.quantized is not None and not inference:
            raise CheckpointError(
                "is a quantized model, which only predicts",
                where=str(path),
                remedy="name a checkpoint of the run that it was made from",
            )
        own = {f"{OWN}{name}" for name in meta.own}
        datasets = {name: hdf5.trusted_dataset(file, name, path) for name in file if name != META}
        buffers = {
            name: np.asarray(dataset[...]) for name, dataset in datasets.items() if name not in own
        }
        streamed = {name: dataset for name, dataset in datasets.items() if name in own}
        _verify(path, meta, buffers, streamed)
    state = RunState(
        {name: buffers.pop(f"{SHARED}{name}").reshape(shape) for name, shape in meta.shared.items()}
    )
    return Checkpoint(path, meta, buffers, state)


def read_own(path: Path, meta: Meta, rank: int) -> Buffers:
    """Load and verify what was `rank`'s own in the run state of a checkpoint."""
    found: Buffers = {}
    with _opened(path) as file:
        for name, arrays in meta.own.items():
            shape = arrays.shapes[rank]
            if shape is None:
                continue
            dataset = f"{OWN}{name}"
            start, stop = arrays.span(rank)
            held = np.asarray(hdf5.trusted_dataset(file, dataset, path)[start:stop])
            expected = next(
                part.sha256
                for part in meta.parts
                if (part.dataset, part.start, part.stop) == (dataset, start, stop)
            )
            if compute_digest(held) != expected:
                raise _damaged(path, f"the checksum of {dataset!r}[{start}:{stop}] is wrong")
            found[name] = held.reshape(shape)
    return found


def read_step(path: Path) -> int:
    """The step of a checkpoint by its metadata; -1 if there is none that can be read."""
    try:
        with _opened(path) as file:
            return _read_meta(file, path).step
    except CheckpointError:
        return -1


def load_for(
    context: Context, find: Callable[[], Checkpoint], doing: str, *, own: bool = False
) -> Checkpoint:
    """Find, read and verify a checkpoint on rank 0, for all ranks. Collective.

    Args:
        context: The ranks.
        find: Called on rank 0.
        doing: The activity, for error messages.
        own: Also load each rank's own run state, where as many ranks have written it.
    """
    loaded: Checkpoint | None = None
    with context.fail_together(doing):
        if context.is_root:
            loaded = find()
    head = (loaded.path, loaded.meta) if loaded else None
    path, meta = context.bcast_object(head, tuple[Path, Meta])
    buffers = _broadcast_arrays(loaded.buffers if loaded else None, context)
    state = RunState(_broadcast_arrays(loaded.state.shared if loaded else None, context))
    if own and meta.ranks == context.size:
        with context.fail_together(doing):
            state.own = read_own(path, meta, context.rank)
    return Checkpoint(path, meta, buffers, state)


def _broadcast_arrays(held: Buffers | None, context: Context) -> Buffers:
    """Rank 0's arrays on every rank, in messages that MPI can count. Collective."""
    own = {name: (array.shape, array.dtype.str) for name, array in (held or {}).items()}
    shapes = context.bcast_object(own, dict[str, tuple[tuple[int, ...], str]])
    if held is not None:
        arrays = held
    else:
        arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in shapes.items()}
    for array in arrays.values():
        flat = array.reshape(-1)
        for start, stop in segments((0, flat.size), transport.MOST):
            context.comm.Bcast(flat[start:stop], root=0)
    return arrays


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The open file; its errors are told apart into damage and what cannot be read now."""
    if not path.is_file():
        raise CheckpointError("there is no such file", where=str(path), remedy="check the path")
    try:
        with reading(path), hdf5.open_file(path) as file:
            yield file
    except UnreadableError as error:
        remedy = f"{error.remedy}; then try again, or name an earlier one with --resume-from FILE"
        raise CheckpointError(error.what, where=str(path), remedy=remedy) from error
    except (DataError, msgspec.MsgspecError, ValueError, TypeError) as error:
        raise _damaged(path, getattr(error, "what", str(error))) from error


def _damaged(path: Path, what: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(what, where=str(path), remedy=DAMAGED)


class _Version(msgspec.Struct):
    version: int


def _read_meta(file: Any, path: Path) -> Meta:
    inside = META in file  # else an attribute: version 1
    if (not inside and META not in file.attrs) or "meta_sha256" not in file.attrs:
        raise _damaged(path, "is not a checkpoint of mpidl, or was never finished")
    held = hdf5.trusted_dataset(file, META, path)[...] if inside else file.attrs[META]
    encoded = np.asarray(held).tobytes()
    if hashlib.sha256(encoded).hexdigest() != file.attrs["meta_sha256"]:
        raise _damaged(path, "the checksum of its metadata is wrong")
    version = msgspec.json.decode(encoded, type=_Version).version
    if version != VERSION:
        raise CheckpointError(
            f"has version {version}, this mpidl reads version {VERSION}",
            where=str(path),
            remedy="use the mpidl that wrote it (its parameters may have other names), or name "
            "another checkpoint with --resume-from FILE",
        )
    return msgspec.json.decode(encoded, type=Meta)


def _verify(path: Path, meta: Meta, buffers: Buffers, streamed: dict[str, Any]) -> None:
    """Refuse the file unless its checksums cover all data and agree.

    Args:
        path: Of the file.
        meta: Its metadata.
        buffers: Arrays in memory.
        streamed: Datasets that are not in memory.
    """
    every: dict[str, Any] = buffers | streamed
    covered = dict.fromkeys(every, 0)
    for part in meta.parts:
        if part.dataset not in every or _digest_part(every[part.dataset], part) != part.sha256:
            place = f"{part.dataset!r}[{part.start}:{part.stop}]"
            raise _damaged(path, f"the checksum of {place} is wrong")
        covered[part.dataset] += part.stop - part.start
    if any(covered[name] != array.size for name, array in every.items()):
        raise _damaged(path, "its checksums do not cover its data")


def _digest_part(array: Any, part: Part) -> str:
    """Of an array, or of a dataset piece by piece."""
    digest = hashlib.sha256()
    step = max(1, READ_BYTES // array.dtype.itemsize)
    for start in range(part.start, part.stop, step):
        piece = np.ascontiguousarray(array[start : min(start + step, part.stop)])
        digest.update(piece.view(np.uint8).data)
    return digest.hexdigest()
