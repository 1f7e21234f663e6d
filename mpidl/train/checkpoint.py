"""Checkpoints: one HDF5 file with the flat buffers, written by all ranks, beside and renamed, with checksums.

A file under its final name is complete: every dataset is there, forced to disk, and its SHA-256 stands in the metadata.
HDF5 alone cannot tell (a killed writer can leave a file that opens and reads as zeros).

Datasets: "parameters", "state" and "optimizer.NAME" over the whole model; "shared.NAME" and "own.NAME", the run state
(mpidl.optim.RunState), of which "own" holds the arrays of all ranks one after another; "meta", the metadata as JSON, which
grows with the number of ranks: an attribute of HDF5 would have to stay below 64 KiB.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mpidl.collectives.schedule import segments
from mpidl.comm import transport
from mpidl.comm.context import Context
from mpidl.data import hdf5
from mpidl.errors import CheckpointError, DataError, MpidlError, UnreadableError
from mpidl.files import partial_path, publish, reading, reserve, sync
from mpidl.optim import RunState

VERSION = 3  # 2: parameters have other names; 1: no run state, metadata in an attribute
BEST = "best.h5"
META = "meta"
META_BYTES, PART_BYTES = (
    1 << 16,
    512,
)  # room for the metadata, reserved with the data: and for each part more
SHARED, OWN = "shared.", "own."
READ_BYTES = 64 << 20  # of what is only verified, at a time
DAMAGED = "use an earlier checkpoint: this file is damaged, or it never was one"
_NAME = re.compile(r"step-(\d{8,})\.h5")
Buffers = dict[str, NDArray[Any]]


class Part(msgspec.Struct, frozen=True):
    """The checksum of elements [start, stop) of a dataset."""

    dataset: str
    start: int
    stop: int
    sha256: str


class OwnArrays(msgspec.Struct, frozen=True):
    """One name of `RunState.own`: dtype, and the shape on each rank; None where a rank has none."""

    dtype: str
    shapes: tuple[tuple[int, ...] | None, ...]

    def span(self, rank: int) -> tuple[int, int]:
        """Where the rank's elements lie in the dataset."""
        sizes = [0 if shape is None else math.prod(shape) for shape in self.shapes]
        start = sum(sizes[:rank])
        return start, start + sizes[rank]

    @property
    def size(self) -> int:
        """Elements of all ranks."""
        return self.span(len(self.shapes) - 1)[1]


class Meta(msgspec.Struct, frozen=True):
    """What a checkpoint says of itself. step: finished steps; epoch, epoch_step: where the data goes on.

    ranks: that wrote it; shared, own: shapes of the arrays in the run state.
    """

    version: int
    step: int
    epoch: int
    epoch_step: int
    config: dict[str, Any]
    inputs: dict[str, Any]
    parameters: dict[str, tuple[int, list[int]]]
    metrics: dict[str, float]
    best_accuracy: float
    parts: tuple[Part, ...] = ()
    ranks: int = 0
    shared: dict[str, tuple[int, ...]] = {}
    own: dict[str, OwnArrays] = {}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded and verified checkpoint. state: without `own` where those are of another number of ranks."""

    path: Path
    meta: Meta
    buffers: Buffers
    state: RunState


class DamagedCheckpoint(CheckpointError):
    """The contents of a checkpoint are not what was written: trying again cannot help."""


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
    """Write `folder`/step-N.h5; then drop all but the `keep` newest, and point best.h5 at it if it is the best. Collective.

    buffers: name -> (n,) host arrays, equal on all ranks; state: what else a resumed run needs. An error leaves earlier
    checkpoints as they are and is raised on every rank as CheckpointError.
    """
    path = folder / f"step-{meta.step:08d}.h5"
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
        raised = CheckpointError(
            f"the checkpoint could not be written: {error.what}",
            where=str(path),
            remedy=f"{error.remedy or 'check the file system'}; earlier checkpoints in {folder} are intact: use --resume",
        )
        raised.agreed = error.agreed
        raise raised from error
    return path


def _describe_own(state: RunState, context: Context) -> dict[str, OwnArrays]:
    """What the ranks have of their own, but for what is shared too and the same on all of them. Collective.

    A serial h5py opens the file once for each rank that has something of its own.
    """
    held = context.allgather_object(
        {
            name: (array.dtype.str, array.shape, _if_shared(state, name))
            for name, array in state.own.items()
        }
    )
    every = dict.fromkeys(name for one in held for name in one)
    first = held[0]
    alike = {
        name
        for name in first
        if first[name][2] is not None and all(one.get(name) == first[name] for one in held)
    }
    names = [name for name in every if name not in alike]
    dtypes = {name: next(one[name][0] for one in held if name in one) for name in names}
    return {
        name: OwnArrays(dtypes[name], tuple(one[name][1] if name in one else None for one in held))
        for name in names
    }


def _if_shared(state: RunState, name: str) -> bytes | None:
    """The bytes of a rank's own array if the shared one is the same."""
    own, shared = state.own[name], state.shared.get(name)
    return own.tobytes() if shared is not None and shared.tobytes() == own.tobytes() else None


def _create(partial: Path, whole: Buffers, own: dict[str, OwnArrays], ranks: int) -> None:
    """Create the file and reserve its blocks, so that a full disk is noticed here, not in mid-write."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    with hdf5.open_file(partial, "w") as file:
        for name, array in whole.items():
            file.create_dataset(name, array.shape, array.dtype, dcpl=hdf5.early_allocation())
        for name, arrays in own.items():
            file.create_dataset(
                f"{OWN}{name}", (arrays.size,), arrays.dtype, dcpl=hdf5.early_allocation()
            )
    room = META_BYTES + PART_BYTES * ranks * (len(whole) + len(own))
    reserve(partial, partial.stat().st_size + room)


def _write_parts(
    partial: Path, whole: Buffers, state: RunState, own: dict[str, OwnArrays], context: Context
) -> list[Part]:
    """Every rank writes and hashes its slice of every buffer, and what is its own; one after another where h5py is serial."""
    parallel = hdf5.is_parallel() and context.size > 1
    writers = context.size if parallel else 1
    held = [(name, array.reshape(-1)) for name, array in state.own.items() if name in own]
    pieces = [(f"{OWN}{name}", own[name].span(context.rank)[0], array) for name, array in held]
    if context.rank < writers:
        for name, array in whole.items():
            start, stop = (
                context.rank * array.size // writers,
                (context.rank + 1) * array.size // writers,
            )
            pieces.append((name, start, array[start:stop]))
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
        parts = []
        for turn in range(context.size if own else 1):
            with context.fail_together(f"writing {partial}"):
                if turn == context.rank and pieces:
                    with hdf5.open_file(partial, "r+") as file:
                        parts = [_write_piece(file, *piece) for piece in pieces]
    return [part for own_parts in context.allgather_object(parts) for part in own_parts]


def _write_piece(file: Any, name: str, start: int, array: NDArray[Any]) -> Part:
    stop = start + array.size
    if array.size:
        file[name][start:stop] = array
    return Part(name, start, stop, _digest(array))


def _digest(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).hexdigest()


def _publish(path: Path, partial: Path, meta: Meta, keep: int, best: bool) -> None:
    encoded = msgspec.json.encode(meta)
    with hdf5.open_file(partial, "r+") as file:
        file.create_dataset(META, data=np.frombuffer(encoded, np.uint8))
        file.attrs["meta_sha256"] = hashlib.sha256(encoded).hexdigest()
    publish(partial, path)
    if best:
        _link(path, path.with_name(BEST))
        sync(path.parent)
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
    """The checkpoints in `folder`, newest first; best.h5 is not among them. Raises OSError if the folder cannot be read."""
    try:
        names = [entry.name for entry in os.scandir(folder)]
    except FileNotFoundError:
        return []
    return [
        folder / name
        for name in sorted((n for n in names if _NAME.fullmatch(n)), key=step_in_name, reverse=True)
    ]


def step_in_name(path: Path | str) -> int:
    """The step of a checkpoint by its file name; -1 if that is not one."""
    match = _NAME.fullmatch(Path(path).name)
    return int(match.group(1)) if match else -1


def read(path: Path) -> Checkpoint:
    """Load and verify one checkpoint, but for `state.own`, which is verified only: `read_own` loads it.

    Raises DamagedCheckpoint where the file is not what was written, and CheckpointError where it cannot be read now, or by this
    version.
    """
    with _opened(path) as file:
        meta = _read_meta(file, path)
        own = {f"{OWN}{name}" for name in meta.own}
        datasets = {name: hdf5.trusted_dataset(file, name, path) for name in file if name != META}
        buffers = {
            name: np.asarray(dataset[...]) for name, dataset in datasets.items() if name not in own
        }
        _verify(
            path,
            meta,
            buffers,
            {name: dataset for name, dataset in datasets.items() if name in own},
        )
    state = RunState(
        {name: buffers.pop(f"{SHARED}{name}").reshape(shape) for name, shape in meta.shared.items()}
    )
    return Checkpoint(path, meta, buffers, state)


def read_own(path: Path, meta: Meta, rank: int) -> Buffers:
    """What was `rank`'s own in the run state of a checkpoint, verified."""
    found: Buffers = {}
    with _opened(path) as file:
        for name, arrays in meta.own.items():
            shape = arrays.shapes[rank]
            if shape is not None:
                start, stop = arrays.span(rank)
                held = np.asarray(hdf5.trusted_dataset(file, f"{OWN}{name}", path)[start:stop])
                expected = next(
                    p.sha256
                    for p in meta.parts
                    if (p.dataset, p.start, p.stop) == (f"{OWN}{name}", start, stop)
                )
                if _digest(held) != expected:
                    raise _damaged(path, f"the checksum of {OWN + name!r}[{start}:{stop}] is wrong")
                found[name] = held.reshape(shape)
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file; what goes wrong with it is told replicas_differ into what is damaged and what cannot be read now."""
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


def _read_meta(file: Any, path: Path) -> Meta:
    inside = META in file  # else an attribute: version 1
    if (not inside and META not in file.attrs) or "meta_sha256" not in file.attrs:
        raise _damaged(path, "is not a checkpoint of mpidl, or was never finished")
    encoded = np.asarray(
        hdf5.trusted_dataset(file, META, path)[...] if inside else file.attrs[META]
    ).tobytes()
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


class _Version(msgspec.Struct):
    version: int


def _verify(path: Path, meta: Meta, buffers: Buffers, streamed: dict[str, Any]) -> None:
    """Raise DamagedCheckpoint unless the checksums cover all data and agree. streamed: datasets that are not in memory."""
    every: dict[str, Any] = buffers | streamed
    covered = dict.fromkeys(every, 0)
    for part in meta.parts:
        if part.dataset not in every or _digest_part(every[part.dataset], part) != part.sha256:
            raise _damaged(
                path, f"the checksum of {part.dataset!r}[{part.start}:{part.stop}] is wrong"
            )
        covered[part.dataset] += part.stop - part.start
    if any(covered[name] != array.size for name, array in every.items()):
        raise _damaged(path, "its checksums do not cover its data")


def _digest_part(array: Any, part: Part) -> str:
    """Of an array, or of a dataset piece by piece."""
    digest = hashlib.sha256()
    step = max(1, READ_BYTES // array.dtype.itemsize)
    for at in range(part.start, part.stop, step):
        piece = np.ascontiguousarray(array[at : min(at + step, part.stop)])
        digest.update(piece.view(np.uint8).data)
    return digest.hexdigest()


def load_latest(folder: Path, warn: Callable[[str], None]) -> Checkpoint:
    """The newest checkpoint that is intact.

    A damaged one is passed over, with a warning that says how many steps are lost. One that cannot be read now (locked, no
    permission, an I/O error, a newer format) is not: its CheckpointError is raised, since an earlier one would silently throw
    work away. Raises CheckpointError if there is none.
    """
    newest_damaged: Path | None = None
    for path in list_checkpoints(folder):
        try:
            found = read(path)
        except DamagedCheckpoint as error:
            warn(f"WARNING: passing over {error.where}: {error.what}")
            newest_damaged = newest_damaged or path
            continue
        if newest_damaged:
            lost = step_in_name(newest_damaged) - found.meta.step
            warn(
                f"WARNING: {lost} step(s) are lost: the newest intact checkpoint is that of step {found.meta.step}"
            )
        return found
    raise CheckpointError(
        "no usable checkpoint found", where=str(folder), remedy="train without --resume"
    )


def set_aside_later(folder: Path, loaded: Path, step: int, warn: Callable[[str], None]) -> None:
    """Rename checkpoints of later steps than the one that a run goes on from: they are damaged, or belong to another course.

    Left where they are they would count as the newest ones, and what this run writes would be dropped in their favor. So
    would a best.h5 of the other course: the next one, though worse, would replace it.
    """
    later = [
        path for path in list_checkpoints(folder) if step_in_name(path) > step and path != loaded
    ]
    if folder / BEST != loaded and _step_inside(folder / BEST) > step:
        later.append(folder / BEST)
    for path in later:
        aside, number = path.with_name(path.name + ".superseded"), 1
        while aside.exists():  # of a course before that one
            number += 1
            aside = path.with_name(f"{path.name}.superseded-{number}")
        path.replace(aside)
        warn(f"keeping {path.name} as {aside.name}: the run goes on from step {step}")


def _step_inside(path: Path) -> int:
    """The step of a checkpoint by its metadata; -1 if there is none that can be read."""
    try:
        with _opened(path) as file:
            return _read_meta(file, path).step
    except CheckpointError:
        return -1


def load_for(
    context: Context, find: Callable[[], Checkpoint], doing: str, *, own: bool = False
) -> Checkpoint:
    """Rank 0 finds, reads and verifies a checkpoint; every rank gets it. Collective.

    own: also each rank's own run state, where the checkpoint is of as many ranks.
    """
    loaded: Checkpoint | None = None
    with context.fail_together(doing):
        if context.is_root:
            loaded = find()
    head = context.bcast_object((loaded.path, loaded.meta) if loaded else None)
    assert head is not None
    path, meta = head
    buffers = _broadcast_arrays(loaded.buffers if loaded else None, context)
    state = RunState(_broadcast_arrays(loaded.state.shared if loaded else None, context))
    if own and meta.ranks == context.size:
        with context.fail_together(doing):
            state.own = read_own(path, meta, context.rank)
    return Checkpoint(path, meta, buffers, state)


def _broadcast_arrays(held: Buffers | None, context: Context) -> Buffers:
    """Rank 0's arrays on every rank, in messages that MPI can count. Collective."""
    shapes = context.bcast_object(
        {name: (array.shape, array.dtype.str) for name, array in held.items()}
        if held is not None
        else None
    )
    assert shapes is not None
    arrays = (
        held
        if held is not None
        else {name: np.empty(shape, dtype) for name, (shape, dtype) in shapes.items()}
    )
    for array in arrays.values():
        flat = array.reshape(-1)
        for start, stop in segments((0, flat.size), transport.MOST):
            context.comm.Bcast(flat[start:stop], root=0)
    return arrays
