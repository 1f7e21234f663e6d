"""Writes checkpoints: by all ranks, into a partial file that is renamed when it is complete."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from mpidl.comm.context import Context
from mpidl.data import hdf5
from mpidl.errors import CheckpointError, MpidlError
from mpidl.files import partial_path, publish, reserve, sync
from mpidl.optim import RunState
from mpidl.train.checkpoint.format import (
    OWN,
    SHARED,
    Buffers,
    Meta,
    OwnArrays,
    Part,
    compute_digest,
)
from mpidl.train.checkpoint.retention import checkpoint_path, drop_old, link_best
from mpidl.train.checkpoint.sealed import add_meta, create, write_sealed

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
    seal_for: Sequence[str] = (),
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
        seal_for: Recipients of the sealed file; none: it is not sealed.

    Raises:
        CheckpointError: It could not be written; earlier checkpoints are as they were.
    """
    path = checkpoint_path(folder, meta.step)
    state = state or RunState()
    whole = buffers | {f"{SHARED}{name}": array.reshape(-1) for name, array in state.shared.items()}
    complete = msgspec.structs.replace(
        meta,
        ranks=context.size,
        shared={name: array.shape for name, array in state.shared.items()},
        own=_describe_own(state, context),
    )
    partial = partial_path(path)
    try:
        _write(partial, whole, state, complete, context, seal_for)
        context.on_root(lambda: _publish(path, partial, keep, best), f"finishing {path}")
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


def save_file(
    path: Path, meta: Meta, buffers: Buffers, context: Context, *, seal_for: Sequence[str] = ()
) -> None:
    """Write buffers under a name of their own, without a run state. Collective.

    Args:
        path: Of the file, which is replaced if it exists.
        meta: Without parts and ranks, which are filled in.
        buffers: As of `save`.
        context: The ranks.
        seal_for: As of `save`.

    Raises:
        CheckpointError: It could not be written; a former file is as it was.
    """
    partial = partial_path(path)
    complete = msgspec.structs.replace(meta, ranks=context.size)
    try:
        _write(partial, buffers, RunState(), complete, context, seal_for)
        context.on_root(lambda: publish(partial, path), f"finishing {path}")
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


def _write(
    partial: Path,
    whole: Buffers,
    state: RunState,
    meta: Meta,
    context: Context,
    seal_for: Sequence[str],
) -> None:
    """Write a file under its partial name; `meta` still without parts. Collective."""
    if seal_for:
        write_sealed(partial, whole, state, meta, context, seal_for)
        return
    context.on_root(lambda: _create(partial, whole, meta.own, context.size), f"creating {partial}")
    parts = _write_parts(partial, whole, state, meta.own, context)
    complete = msgspec.structs.replace(meta, parts=tuple(parts))
    context.on_root(lambda: _complete(partial, complete), f"finishing {partial}")


def _create(partial: Path, whole: Buffers, own: dict[str, OwnArrays], ranks: int) -> None:
    """Create the file and reserve its blocks: a full disk is noticed here, not in mid-write."""
    with create(partial, whole, own) as file:
        datasets = len(file)
    room = META_BYTES + PART_BYTES * ranks * datasets
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


def _publish(path: Path, partial: Path, keep: int, best: bool) -> None:
    """Give the file its name; then drop what is too old."""
    publish(partial, path)
    if best:
        link_best(path)
        sync(path.parent)
    drop_old(path.parent, keep)


def _complete(partial: Path, meta: Meta) -> None:
    """Add the metadata."""
    with hdf5.open_file(partial, "r+") as file:
        add_meta(file, meta)
