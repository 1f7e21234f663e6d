"""Writes sealed checkpoints: rank 0 writes the whole file, at once; others send what is theirs.

No rank but the first needs to know the recipients, and none has a key of the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mpidl.collectives.schedule import segments
from mpidl.comm import transport
from mpidl.comm.context import Context
from mpidl.data import hdf5
from mpidl.files import sync
from mpidl.optim import RunState
from mpidl.security.sealing_keys import envelope_for
from mpidl.train.checkpoint.format import META, OWN, Buffers, Meta, OwnArrays, Part, compute_digest

Piece = tuple[str, int, NDArray[Any]]  # dataset, first element, values


def write_sealed(
    partial: Path,
    whole: Buffers,
    state: RunState,
    meta: Meta,
    context: Context,
    seal_for: Sequence[str],
) -> None:
    """Write a checkpoint under its partial name. Collective.

    Args:
        partial: The file.
        whole: Datasets that are equal on all ranks.
        state: What is this rank's own is sent to rank 0.
        meta: Without parts.
        context: The ranks.
        seal_for: Recipients.

    Raises:
        MpidlError: On all ranks: it could not be written.
    """
    own, file, parts = meta.own, None, list[Part]()
    with context.fail_together(f"creating {partial}"):
        if context.is_root:
            file = create(partial, whole, own, seal_for)
    try:
        with context.fail_together(f"writing {partial}"):
            failed: Exception | None = None
            # Received also after an error: the others are waiting
            for name, start, array in _pieces(whole, state, own, context):
                try:
                    if failed is None:
                        parts.append(_write_piece(file, name, start, array))
                except Exception as error:
                    failed = error
            if failed is not None:
                raise failed
        with context.fail_together(f"finishing {partial}"):
            if file is not None:
                add_meta(file, msgspec.structs.replace(meta, parts=tuple(parts)))
                file.close()
                sync(partial)
    finally:
        if file is not None:
            file.close()


def create(
    path: Path, whole: Buffers, own: dict[str, OwnArrays], seal_for: Sequence[str] = ()
) -> Any:
    """An open HDF5 file with room for all datasets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes = {name: (array.shape, array.dtype) for name, array in whole.items()}
    shapes |= {f"{OWN}{name}": ((one.size,), np.dtype(one.dtype)) for name, one in own.items()}
    file = hdf5.open_file(path, "w", seal=envelope_for(seal_for) if seal_for else None)
    for name, (shape, dtype) in shapes.items():
        file.create_dataset(name, shape, dtype, dcpl=hdf5.early_allocation())
    return file


def add_meta(file: Any, meta: Meta) -> None:
    """Write the metadata and its digest."""
    encoded = msgspec.json.encode(meta)
    file.create_dataset(META, data=np.frombuffer(encoded, np.uint8))
    file.attrs["meta_sha256"] = hashlib.sha256(encoded).hexdigest()


def _write_piece(file: Any, name: str, start: int, array: NDArray[Any]) -> Part:
    stop = start + array.size
    if array.size:
        file[name][start:stop] = array
    hdf5.check_written(file)
    return Part(name, start, stop, compute_digest(array))


def _pieces(
    whole: Buffers, state: RunState, own: dict[str, OwnArrays], context: Context
) -> Iterator[Piece]:
    """What rank 0 writes, on rank 0; nothing on the others. Collective."""
    if context.is_root:
        for name, array in whole.items():
            yield name, 0, array
    for name, arrays in own.items():
        for rank, shape in enumerate(arrays.shapes):
            if shape is None:
                continue
            start, stop = arrays.span(rank)
            if rank == 0 and context.is_root:
                yield f"{OWN}{name}", start, state.own[name].reshape(-1)
            elif context.is_root:
                held = np.empty(stop - start, arrays.dtype)
                for low, high in segments((0, held.size), transport.MOST):
                    context.comm.Recv(held[low:high].view(np.uint8), source=rank)
                yield f"{OWN}{name}", start, held
            elif rank == context.rank:
                flat = np.ascontiguousarray(state.own[name]).reshape(-1)
                for low, high in segments((0, flat.size), transport.MOST):
                    context.comm.Send(flat[low:high].view(np.uint8), dest=0)
