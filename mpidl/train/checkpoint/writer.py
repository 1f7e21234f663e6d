"""Writes checkpoints: by all ranks, into a partial file that is renamed when it is complete."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mpidl.comm.context import Context
from mpidl.data import hdf5
from mpidl.errors import CheckpointError, MpidlError
from mpidl.files import partial_path, publish, reserve, sync
from mpidl.optim import RunState
from mpidl.train.checkpoint.format import (
    META,
    OWN,
    SHARED,
    Buffers,
    Meta,
    OwnArrays,
    Part,
    compute_digest,
)
from mpidl.train.checkpoint.retention import checkpoint_path, drop_old, link_best

# room for the metadata, which is reserved together with the data; and for each part more
META_BYTES, PART_BYTES = 1 << 16, 512


def save(
    folder: Path,
    meta: Meta,
    buffers: Buffers,
    context: Context,
    *,
    keep: int,
    best: bool,
    state: RunState | None = None,
) -> Path:
    """Write `folder`/step-N.h5. Collective.

    Args:
        folder: Of the checkpoints.
        meta: Without parts, ranks, shared and own, which are filled in.
        buffers: Name -> (n,) host arrays, equal on all ranks.
        context: The ranks.
        keep: How many of the newest checkpoints to keep.
        best: Whether best.h5 becomes this one.
        state: What else a resumed run needs.

    Raises:
        CheckpointError: It could not be written; earlier checkpoints are as they were.
    """
    path = checkpoint_path(folder, meta.step)
    partial = partial_path(path)
    state = state or RunState()
    own = _describe_own(state, context)
    whole = buffers | {f"{SHARED}{name}": array.reshape(-1) for name, array in state.shared.items()}
    shared = {name: array.shape for name, array in state.shared.items()}
    try:
        context.on_root(lambda: _create(partial, whole, own, context.size), f"creating {partial}")
        parts = _write_parts(partial, whole, state, own, context)
        complete = msgspec.structs.replace(
            meta, parts=tuple(parts), ranks=context.size, shared=shared, own=own
        )
        context.on_root(lambda: _publish(path, partial, complete, keep, best), f"finishing {path}")
    except MpidlError as error:
        if context.is_root:
            partial.unlink(missing_ok=True)
        remedy = error.remedy or "check the file system"
        raise CheckpointError(
            f"the checkpoint could not be written: {error.what}",
            where=str(path),
            remedy=f"{remedy}; earlier checkpoints in {folder} are intact: use --resume",
            agreed=error.agreed,
        ) from error
    return path


def save_file(path: Path, meta: Meta, buffers: Buffers, context: Context) -> None:
    """Write buffers under a name of their own, without a run state. Collective.

    Args:
        path: Of the file, which is replaced if it exists.
        meta: Without parts and ranks, which are filled in.
        buffers: As of `save`.
        context: The ranks.

    Raises:
        CheckpointError: It could not be written; a former file is as it was.
    """
    partial = partial_path(path)
    try:
        context.on_root(lambda: _create(partial, buffers, {}, context.size), f"creating {partial}")
        parts = _write_parts(partial, buffers, RunState(), {}, context)
        complete = msgspec.structs.replace(meta, parts=tuple(parts), ranks=context.size)
        context.on_root(lambda: _complete(partial, path, complete), f"finishing {path}")
    except MpidlError as error:
        if context.is_root:
            partial.unlink(missing_ok=True)
        remedy = error.remedy or "check the file system"
        what = f"it could not be written: {error.what}"
        raise CheckpointError(what, where=str(path), remedy=remedy, agreed=error.agreed) from error


def _describe_own(state: RunState, context: Context) -> dict[str, OwnArrays]:
    """What the ranks have of their own, but for what is shared too and equal on all. Collective.

    What is equal is left out since a serial h5py opens the file once for each rank that has
    something of its own.
    """
    held = context.allgather_object(
        {
            name: (array.dtype.str, array.shape, _bytes_if_shared(state, name))
            for name, array in state.own.items()
        },
        dict[str, tuple[str, tuple[int, ...], bytes | None]],
    )
    every = dict.fromkeys(name for one in held for name in one)
    first = held[0]
    equal = {
        name
        for name in first
        if first[name][2] is not None and all(one.get(name) == first[name] for one in held)
    }
    names = [name for name in every if name not in equal]
    dtypes = {name: next(one[name][0] for one in held if name in one) for name in names}
    return {
        name: OwnArrays(dtypes[name], tuple(one[name][1] if name in one else None for one in held))
        for name in names
    }


def _bytes_if_shared(state: RunState, name: str) -> bytes | None:
    """The bytes of a rank's own array if the shared one is equal."""
    own = state.own[name]
    shared = state.shared.get(name)
    return own.tobytes() if shared is not None and shared.tobytes() == own.tobytes() else None


def _create(partial: Path, whole: Buffers, own: dict[str, OwnArrays], ranks: int) -> None:
    """Create the file and reserve its blocks: a full disk is noticed here, not in mid-write."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    shapes = {name: (array.shape, array.dtype) for name, array in whole.items()}
    shapes |= {f"{OWN}{name}": ((one.size,), np.dtype(one.dtype)) for name, one in own.items()}
    with hdf5.open_file(partial, "w") as file:
        for name, (shape, dtype) in shapes.items():
            file.create_dataset(name, shape, dtype, dcpl=hdf5.early_allocation())
    room = META_BYTES + PART_BYTES * ranks * len(shapes)
    reserve(partial, partial.stat().st_size + room)


def _write_parts(
    partial: Path, whole: Buffers, state: RunState, own: dict[str, OwnArrays], context: Context
) -> list[Part]:
    """Write and hash this rank's slice of every buffer, and what is its own. Collective.

    Returns:
        The checksums of all ranks.
    """
    parallel = hdf5.is_parallel(context.comm) and context.size > 1
    pieces = _choose_pieces(whole, state, own, context, context.size if parallel else 1)
    parts: list[Part] = []
    if parallel:
        with context.fail_together(f"opening {partial}"):
            file = hdf5.open_file(partial, "r+", comm=context.comm)
        try:
            with context.fail_together(f"writing {partial}"):
                parts = [_write_piece(file, *piece) for piece in pieces]
        finally:  # all ranks come here; a file left open would be closed after the end of MPI
            with context.fail_together(f"closing {partial}"):
                file.close()
    else:
        for turn in range(context.size if own else 1):  # a serial h5py: one rank at a time
            with context.fail_together(f"writing {partial}"):
                if turn == context.rank and pieces:
                    with hdf5.open_file(partial, "r+") as file:
                        parts = [_write_piece(file, *piece) for piece in pieces]
    return [part for own_parts in context.allgather_object(parts, list[Part]) for part in own_parts]


def _choose_pieces(
    whole: Buffers, state: RunState, own: dict[str, OwnArrays], context: Context, writers: int
) -> list[tuple[str, int, NDArray[Any]]]:
    """What this rank writes: (dataset, first element, values). `writers` ranks share buffers."""
    pieces = [
        (f"{OWN}{name}", own[name].span(context.rank)[0], array.reshape(-1))
        for name, array in state.own.items()
        if name in own
    ]
    if context.rank < writers:
        for name, array in whole.items():
            start = context.rank * array.size // writers
            stop = (context.rank + 1) * array.size // writers
            pieces.append((name, start, array[start:stop]))
    return pieces


def _write_piece(file: Any, name: str, start: int, array: NDArray[Any]) -> Part:
    stop = start + array.size
    if array.size:
        file[name][start:stop] = array
    return Part(name, start, stop, compute_digest(array))


def _publish(path: Path, partial: Path, meta: Meta, keep: int, best: bool) -> None:
    """Complete the file; then drop what is too old."""
    _complete(partial, path, meta)
    if best:
        link_best(path)
        sync(path.parent)
    drop_old(path.parent, keep)


def _complete(partial: Path, path: Path, meta: Meta) -> None:
    """Add the metadata, force the file to disk and give it its name."""
    encoded = msgspec.json.encode(meta)
    with hdf5.open_file(partial, "r+") as file:
        file.create_dataset(META, data=np.frombuffer(encoded, np.uint8))
        file.attrs["meta_sha256"] = hashlib.sha256(encoded).hexdigest()
    publish(partial, path)
