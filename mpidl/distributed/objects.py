"""Python objects, and the state of models and optimizers."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np

from mpidl import collectives
from mpidl.collectives import Group
from mpidl.collectives.safety import checks
from mpidl.collectives.schedule import segments
from mpidl.comm import objects, transport
from mpidl.comm.objects import ErrorRecord
from mpidl.distributed.groups import ProcessGroup, resolve_group
from mpidl.errors import CollectiveError

Kind = tuple[str, str, ErrorRecord | None]  # shape, dtype, or why it cannot be sent
FAILED = -1  # instead of the length of an object that cannot be pickled


def broadcast_object(value: Any, root: int = 0, *, group: ProcessGroup | None = None) -> Any:
    """The root's `value`, pickled, on every rank.

    Args:
        value: Any object that can be pickled; ignored on other ranks.
        root: A rank of the group.
        group: The ranks, by default all.

    Raises:
        CollectiveError: On every rank: the value cannot be pickled, or roots differ.
    """
    members = resolve_group(group).group()
    checks.peer(root, members, "broadcast_object")
    with members.during("broadcast_object", None, f"root {root}"):
        if members.guard != "off":
            checks.agreement(members)
        packed, reason = _packed(value) if members.rank == root else (b"", "")
        head = FAILED if reason else len(packed), reason
        length, reason = objects.bcast(members.comm, head, tuple[int, str], root)
        if length == FAILED:
            raise _refused(f"rank {root}", reason)
        return pickle.loads(_broadcast_bytes(packed, length, root, members))


def all_gather_object(value: Any, *, group: ProcessGroup | None = None) -> list[Any]:
    """Every rank's `value`, pickled, in rank order.

    Raises:
        CollectiveError: On every rank: one of the values cannot be pickled.
    """
    members = resolve_group(group).group()
    with members.during("all_gather_object"):
        packed, reason = _packed(value)
        lengths = objects.allgather(members.comm, FAILED if reason else len(packed), int)
        if FAILED in lengths:
            rank = lengths.index(FAILED)
            raise _refused(f"rank {rank}", objects.bcast(members.comm, reason, str, rank))
        return [
            pickle.loads(_broadcast_bytes(packed, length, rank, members))
            for rank, length in enumerate(lengths)
        ]


def _packed(value: Any) -> tuple[bytes, str]:
    """Pickled, or why it cannot be."""
    try:
        return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL), ""
    except Exception as error:  # whatever the object's own methods raise
        return b"", f"{type(value).__name__} ({error})"


def _refused(where: str, reason: str) -> CollectiveError:
    return CollectiveError(
        f"cannot send an object that cannot be pickled: {reason}",
        where=where,
        remedy="send plain data (lists, arrays, numbers)",
        agreed=True,
    )


def _broadcast_bytes(packed: bytes, length: int, root: int, members: Group) -> Any:
    """In messages that MPI can count."""
    raw = np.frombuffer(packed, np.uint8) if members.rank == root else np.empty(length, np.uint8)
    for start, stop in segments((0, length), transport.MOST):
        members.comm.Bcast(raw[start:stop], root=root)
    return raw


def broadcast_parameters(
    parameters: Any, root: int = 0, *, group: ProcessGroup | None = None
) -> None:
    """Copy the root's parameters to every rank, in place.

    Args:
        parameters: {name: contiguous array}; or an mpidl model or its FlatParameters, which take
            one message.
        root: A rank of the group.
        group: The ranks, by default all.

    Raises:
        CollectiveError: On every rank: names, shapes or dtypes differ between ranks, or an array
            cannot be sent.
    """
    members = resolve_group(group).group()
    checks.peer(root, members, "broadcast_parameters")
    flat = getattr(getattr(parameters, "parameters", parameters), "values", None)
    if flat is not None and hasattr(flat, "dtype"):
        collectives.broadcast(flat, comm=members, root=root, name="parameters")
        return
    if not isinstance(parameters, Mapping):
        raise CollectiveError(
            f"cannot broadcast the parameters of a {type(parameters).__name__}",
            remedy="pass a model, or {name: array}",
        )
    named = {str(name): array for name, array in parameters.items()}
    with members.during("broadcast_parameters", None, f"root {root}"):
        _check_equal({name: _kind(array, name) for name, array in named.items()}, members)
    for name in sorted(named):
        collectives.broadcast(named[name].reshape(-1), comm=members, root=root, name=name)


def broadcast_optimizer_state(
    optimizer: Any, root: int = 0, *, group: ProcessGroup | None = None
) -> None:
    """Copy the root's optimizer state to every rank, in place.

    Args:
        optimizer: {name: array}, or an object with that as `state`.
        root: A rank of the group.
        group: The ranks, by default all.
    """
    broadcast_parameters(getattr(optimizer, "state", optimizer), root, group=group)


def _kind(array: Any, name: str) -> Kind:
    """Shape, dtype, and why it cannot be broadcast."""
    try:
        checks.array(array, "broadcast_parameters", name)
    except CollectiveError as error:
        return type(array).__name__, "", ErrorRecord.of(error)
    return str(tuple(array.shape)), str(array.dtype), None


def _check_equal(own: dict[str, Kind], members: Group) -> None:
    """Raise on every rank for the first name that one of them lacks or holds otherwise."""
    everyone = objects.allgather(members.comm, own, dict[str, Kind])
    for name in sorted({name for held in everyone for name in held}):
        for rank, held in enumerate(everyone):
            record = held[name][2] if name in held else None
            error = record.error() if record is not None else None
            if error is None and held.get(name) != everyone[0].get(name):
                kinds = [
                    " x ".join(one[name][:2]) if name in one else "no such array"
                    for one in (held, everyone[0])
                ]
                error = CollectiveError(
                    f"rank {rank} has {kinds[0]}, rank 0 has {kinds[1]}",
                    where=name,
                    remedy="build the same model on every rank",
                )
            if error is not None:
                raise error.replace(agreed=True)
