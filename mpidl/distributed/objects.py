"""Python objects, and the state of models and optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpidl import collectives
from mpidl.distributed.groups import ProcessGroup, world
from mpidl.errors import CollectiveError


def broadcast_object(value: Any, root: int = 0, *, group: ProcessGroup | None = None) -> Any:
    """The root's `value` (pickled), on every rank; what the others pass is ignored."""
    return (group or world()).group().comm.bcast(value, root=root)


def all_gather_object(value: Any, *, group: ProcessGroup | None = None) -> list[Any]:
    """Every rank's `value` (pickled), in the order of ranks."""
    gathered: list[Any] = (group or world()).group().comm.allgather(value)
    return gathered


def broadcast_parameters(parameters: Any, root: int = 0, *, group: ProcessGroup | None = None) -> None:
    """The root's parameters reach every rank, in place.

    parameters: a mapping of names to contiguous arrays; an mpidl model or its FlatParameters (one message for all of them).
    Raises CollectiveError on every rank if names or shapes differ between ranks.
    """
    members = (group or world()).group()
    flat = getattr(getattr(parameters, "parameters", parameters), "values", None)
    if flat is not None and hasattr(flat, "dtype"):
        collectives.broadcast(flat, comm=members, root=root, name="parameters")
        return
    if not isinstance(parameters, Mapping):
        raise CollectiveError(
            f"cannot broadcast the parameters of a {type(parameters).__name__}", remedy="pass a model, or {name: array}"
        )
    _check_equal({name: (tuple(array.shape), str(array.dtype)) for name, array in parameters.items()}, members)
    for name, array in parameters.items():
        collectives.broadcast(_flat(array, name), comm=members, root=root, name=name)


def broadcast_optimizer_state(optimizer: Any, root: int = 0, *, group: ProcessGroup | None = None) -> None:
    """The root's optimizer state reaches every rank: a mapping of arrays, or an object with one as `state`."""
    broadcast_parameters(getattr(optimizer, "state", optimizer), root, group=group)


def _flat(array: Any, name: str) -> Any:
    if not array.flags.c_contiguous:
        raise CollectiveError("is not contiguous", where=name, remedy="numpy.ascontiguousarray makes a copy that is")
    return array.reshape(-1)


def _check_equal(own: dict[str, Any], members: collectives.Group) -> None:
    for rank, other in enumerate(members.comm.allgather(own)):
        for name in [name for name in {**own, **other} if own.get(name) != other.get(name)]:
            error = CollectiveError(
                f"rank {rank} has {other.get(name, 'no such array')}, rank {members.rank} has {own.get(name, 'none')}",
                where=name,
                remedy="build the same model on every rank",
            )
            error.agreed = False
            raise error
