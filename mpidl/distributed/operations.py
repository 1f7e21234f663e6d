"""The collective operations on arrays of any shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpidl import collectives
from mpidl.collectives import Group
from mpidl.comm.transport import array_module
from mpidl.distributed.groups import ProcessGroup, world
from mpidl.distributed.handles import launch
from mpidl.distributed.joining import announced, reduce_among_active
from mpidl.distributed.objects import _flat
from mpidl.errors import CollectiveError


def all_reduce(
    array: Any, op: str = "sum", *, group: ProcessGroup | None = None, async_op: bool = False, name: str = ""
) -> Any:
    """Reduce `array` over the group, in place. Returns it, or a Handle."""
    own = group or world()
    flat = _flat(array, name or "all_reduce")

    def operate(members: Group) -> Any:
        active = announced(flat, op, members, own)
        if active is not None and active < members.size:
            reduce_among_active(flat, op, members, active)
        else:
            collectives.all_reduce(flat, comm=members, op=op, name=name)
        return array

    if own.joinable and async_op:
        raise CollectiveError("a joinable world has no asynchronous all-reduce", remedy="use async_op=False")
    return launch(operate, own, async_op)


def grouped_all_reduce(
    arrays: Sequence[Any], op: str = "sum", *, group: ProcessGroup | None = None, async_op: bool = False, name: str = ""
) -> Any:
    """Reduce several arrays as one message for each dtype, in place. Returns them, or a Handle."""
    flats = [_flat(array, name or "grouped_all_reduce") for array in arrays]

    def operate(members: Group) -> Any:
        for dtype in dict.fromkeys(flat.dtype for flat in flats):
            chosen = [flat for flat in flats if flat.dtype == dtype]
            fused = array_module(chosen[0]).concatenate(chosen)
            collectives.all_reduce(fused, comm=members, op=op, name=name)
            ends = np.cumsum([flat.size for flat in chosen])
            for flat, end in zip(chosen, ends, strict=True):
                flat[...] = fused[int(end) - flat.size : int(end)]
        return list(arrays)

    return launch(operate, group or world(), async_op)


def reduce(array: Any, root: int = 0, op: str = "sum", *, group: ProcessGroup | None = None, async_op: bool = False) -> Any:
    """Reduce into the root's `array`; the others' are left as they were. Returns it, or a Handle."""
    own = group or world()
    flat = _flat(array, "reduce")

    def operate(members: Group) -> Any:
        work = flat if members.rank == root else flat.copy()
        collectives.reduce(work, comm=members, root=root, op=op)
        return array

    return launch(operate, own, async_op)


def broadcast(array: Any, root: int = 0, *, group: ProcessGroup | None = None, async_op: bool = False) -> Any:
    """The root's `array` reaches every rank, in place. Returns it, or a Handle."""
    flat = _flat(array, "broadcast")

    def operate(members: Group) -> Any:
        collectives.broadcast(flat, comm=members, root=root)
        return array

    return launch(operate, group or world(), async_op)


def all_gather(array: Any, *, group: ProcessGroup | None = None, async_op: bool = False) -> Any:
    """Every rank's `array`, stacked: (P, *shape). Shapes and dtypes are equal on all ranks. Returns it, or a Handle."""
    flat = _flat(array, "all_gather")

    def operate(members: Group) -> Any:
        whole = array_module(array).empty((members.size, flat.size), flat.dtype)
        whole[members.rank] = flat
        collectives.all_gather(whole.reshape(-1), comm=members)
        return whole.reshape(members.size, *array.shape)

    return launch(operate, group or world(), async_op)


def grouped_all_gather(arrays: Sequence[Any], *, group: ProcessGroup | None = None, async_op: bool = False) -> Any:
    """`all_gather` of several arrays; a list, or a Handle."""

    def operate(members: Group) -> Any:
        flats = [_flat(array, "grouped_all_gather") for array in arrays]
        wholes = []
        for array, flat in zip(arrays, flats, strict=True):
            whole = array_module(array).empty((members.size, flat.size), flat.dtype)
            whole[members.rank] = flat
            collectives.all_gather(whole.reshape(-1), comm=members)
            wholes.append(whole.reshape(members.size, *array.shape))
        return wholes

    return launch(operate, group or world(), async_op)


def reduce_scatter(array: Any, op: str = "sum", *, group: ProcessGroup | None = None, async_op: bool = False) -> Any:
    """Reduce, and keep one of P equal parts along the first axis: (n / P, ...), a new array. Returns it, or a Handle."""
    flat, own = _flat(array, "reduce_scatter"), group or world()
    _divides(array, own.size, "reduce_scatter")

    def operate(members: Group) -> Any:
        part = collectives.reduce_scatter(flat.copy(), comm=members, op=op)
        return part.reshape(array.shape[0] // members.size, *array.shape[1:])

    return launch(operate, own, async_op)


def scatter(array: Any, root: int = 0, *, group: ProcessGroup | None = None) -> Any:
    """One of P equal parts of the root's `array` along the first axis, a new array; the others may pass None."""
    members = (group or world()).group()
    if members.rank == root:
        _divides(array, members.size, "scatter")
    shape, dtype = members.comm.bcast((array.shape, array.dtype) if members.rank == root else None, root=root)
    work = _flat(array, "scatter").copy() if members.rank == root else np.empty(int(np.prod(shape)), dtype)
    part = collectives.scatter(work, comm=members, root=root)
    return part.reshape(shape[0] // members.size, *shape[1:])


def gather(array: Any, root: int = 0, *, group: ProcessGroup | None = None) -> Any:
    """Every rank's `array`, stacked, on the root: (P, *shape); None on the others."""
    members, flat = (group or world()).group(), _flat(array, "gather")
    whole = array_module(array).empty((members.size, flat.size), flat.dtype)
    whole[members.rank] = flat
    collectives.gather(whole.reshape(-1), comm=members, root=root)
    return whole.reshape(members.size, *array.shape) if members.rank == root else None


def alltoall(array: Any, *, group: ProcessGroup | None = None, async_op: bool = False) -> Any:
    """Part d of rank s along the first axis becomes part s of rank d; a new array of the same shape, or a Handle."""
    flat, own = _flat(array, "alltoall"), group or world()
    _divides(array, own.size, "alltoall")

    def operate(members: Group) -> Any:
        received = array_module(array).empty_like(flat)
        collectives.all_to_all(flat, received, comm=members)
        return received.reshape(array.shape)

    return launch(operate, own, async_op)


def send(array: Any, to: int, *, tag: int = 0, group: ProcessGroup | None = None) -> None:
    """Send to rank `to` of the group; returns once the array may be changed."""
    collectives.send(_flat(array, "send"), to, comm=(group or world()).group(), tag=tag)


def recv(array: Any, source: int, *, tag: int = 0, group: ProcessGroup | None = None) -> Any:
    """Receive into `array`, of the sender's size and dtype. Returns it."""
    collectives.recv(_flat(array, "recv"), source, comm=(group or world()).group(), tag=tag)
    return array


def barrier(*, group: ProcessGroup | None = None) -> None:
    """Return once every rank of the group has called it."""
    collectives.barrier(comm=(group or world()).group())


def _divides(array: Any, size: int, what: str) -> None:
    if array.ndim == 0 or array.shape[0] % size:
        raise CollectiveError(
            f"{what} cannot cut an array of shape {array.shape} into {size} equal parts along its first axis",
            remedy=f"make the first axis a multiple of {size}",
        )
