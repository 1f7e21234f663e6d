"""The collective operations on arrays of any shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpidl import collectives
from mpidl.collectives import Group
from mpidl.collectives.safety import checks
from mpidl.comm import objects
from mpidl.comm.objects import ErrorRecord
from mpidl.comm.transport import array_module
from mpidl.distributed.channel import Reduction, checksum
from mpidl.distributed.groups import ProcessGroup, resolve_group
from mpidl.distributed.handles import launch
from mpidl.distributed.joining import announce, reduce_among_active
from mpidl.errors import CollectiveError


def all_reduce(
    array: Any,
    op: str = "sum",
    *,
    group: ProcessGroup | None = None,
    async_op: bool = False,
    name: str = "",
) -> Any:
    """Reduce `array` over the group, in place.

    Asynchronous all-reduces of up to 64 KiB that are queued together are fused into one message.

    Args:
        array: Of any shape, equal in shape and dtype on all ranks.
        op: "sum", "mean", "product", "min" or "max".
        group: The ranks, by default all.
        async_op: Return a Handle at once.
        name: For error messages.

    Returns:
        `array`, or a Handle.

    Raises:
        CollectiveError: The array cannot be reduced, or the ranks disagree.
    """
    own, flat = resolve_group(group), _flat(array, "all_reduce", name)
    if own.joinable:
        if async_op:
            raise CollectiveError(
                "a joinable world has no asynchronous all-reduce", remedy="use async_op=False"
            )
        active = announce(flat, op, own)
        if active < own.size:
            reduce_among_active(flat, op, own.group(), active)
            return array
    elif async_op:
        return own.async_channel().submit(Reduction(array, flat, op, name))
    collectives.all_reduce(flat, comm=own.group(), op=op, name=name)
    return array


def grouped_all_reduce(
    arrays: Sequence[Any],
    op: str = "sum",
    *,
    group: ProcessGroup | None = None,
    async_op: bool = False,
    name: str = "",
) -> Any:
    """Reduce several arrays as one message for each dtype, in place.

    Args:
        arrays: As in `all_reduce`, the same on all ranks.
        op: As in `all_reduce`.
        group: The ranks, by default all.
        async_op: Return a Handle at once.
        name: For error messages.

    Returns:
        The arrays, or a Handle.
    """
    flats = [
        _flat(array, "grouped_all_reduce", name) for array in _several(arrays, "grouped_all_reduce")
    ]

    def operate(members: Group) -> Any:
        for dtype in dict.fromkeys(flat.dtype for flat in flats):
            alike = [flat for flat in flats if flat.dtype == dtype]
            fused = array_module(alike[0]).concatenate(alike)
            sizes = [flat.size for flat in alike]
            # ranks compare names: other arrays of the same total length must differ in it
            mark = f"{len(sizes)} arrays fused {checksum(sizes, [])}"
            label = f"{name} ({mark})" if name else mark
            collectives.all_reduce(fused, comm=members, op=op, name=label)
            ends = np.cumsum(sizes)
            for flat, end in zip(alike, ends, strict=True):
                flat[...] = fused[int(end) - flat.size : int(end)]
        return list(arrays)

    return launch(operate, resolve_group(group), async_op)


def reduce(
    array: Any,
    root: int = 0,
    op: str = "sum",
    *,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Any:
    """Reduce into the root's `array`; those of other ranks are unchanged.

    Returns:
        `array`, or a Handle.
    """
    own = resolve_group(group)
    flat = _flat(array, "reduce")

    def operate(members: Group) -> Any:
        work = flat if members.rank == root else flat.copy()
        collectives.reduce(work, comm=members, root=root, op=op)
        return array

    return launch(operate, own, async_op)


def broadcast(
    array: Any, root: int = 0, *, group: ProcessGroup | None = None, async_op: bool = False
) -> Any:
    """Copy the root's `array` to every rank, in place; returns it, or a Handle."""
    flat = _flat(array, "broadcast")

    def operate(members: Group) -> Any:
        collectives.broadcast(flat, comm=members, root=root)
        return array

    return launch(operate, resolve_group(group), async_op)


def all_gather(array: Any, *, group: ProcessGroup | None = None, async_op: bool = False) -> Any:
    """Gather the arrays of all ranks, equal in shape and dtype, on every rank.

    Returns:
        (P, *shape) in rank order, or a Handle.
    """
    flat = _flat(array, "all_gather", writable=False)

    def operate(members: Group) -> Any:
        return _all_gathered(array, flat, members)

    return launch(operate, resolve_group(group), async_op)


def grouped_all_gather(
    arrays: Sequence[Any], *, group: ProcessGroup | None = None, async_op: bool = False
) -> Any:
    """`all_gather` of several arrays; a list, or a Handle."""
    flats = [
        _flat(array, "grouped_all_gather", writable=False)
        for array in _several(arrays, "grouped_all_gather")
    ]

    def operate(members: Group) -> Any:
        return [
            _all_gathered(array, flat, members) for array, flat in zip(arrays, flats, strict=True)
        ]

    return launch(operate, resolve_group(group), async_op)


def _all_gathered(array: Any, flat: Any, members: Group) -> Any:
    whole = array_module(array).empty((members.size, flat.size), flat.dtype)
    whole[members.rank] = flat
    collectives.all_gather(whole.reshape(-1), comm=members)
    return whole.reshape(members.size, *array.shape)


def reduce_scatter(
    array: Any, op: str = "sum", *, group: ProcessGroup | None = None, async_op: bool = False
) -> Any:
    """Reduce, and keep one of P equal blocks along the first axis.

    Args:
        array: (n, ...), n a multiple of P; unchanged.
        op: As in `all_reduce`.
        group: The ranks, by default all.
        async_op: Return a Handle at once.

    Returns:
        Block r on rank r, (n / P, ...), a new array; or a Handle.
    """
    flat, own = _flat(array, "reduce_scatter", writable=False), resolve_group(group)
    _check_divisible(array, own.size, "reduce_scatter")

    def operate(members: Group) -> Any:
        part = collectives.reduce_scatter(flat.copy(), comm=members, op=op)
        return part.reshape(array.shape[0] // members.size, *array.shape[1:])

    return launch(operate, own, async_op)


def scatter(array: Any, root: int = 0, *, group: ProcessGroup | None = None) -> Any:
    """Distribute P equal blocks of the root's `array` along the first axis.

    Args:
        array: (n, ...), n a multiple of P; other ranks may pass None.
        root: A rank of the group.
        group: The ranks, by default all.

    Returns:
        Block r on rank r, (n / P, ...), a new array.

    Raises:
        CollectiveError: On every rank: the root's array cannot be divided or sent, or roots differ.
    """
    members = resolve_group(group).group()
    checks.peer(root, members, "scatter")
    with members.during("scatter", None, f"root {root}"):
        if members.guard != "off":
            checks.agreement(members)
        shape, dtype = _announce_shape(array, members, root)
    xp = array_module(array) if members.rank == root else np
    work = xp.empty(int(np.prod(shape)), dtype)
    if members.rank == root:
        work[...] = array.reshape(-1)
    part = collectives.scatter(work, comm=members, root=root)
    return part.reshape(shape[0] // members.size, *shape[1:])


def _announce_shape(array: Any, members: Group, root: int) -> tuple[tuple[int, ...], Any]:
    """Shape and dtype of the root's array, on all ranks; or its error is raised on all."""
    told: Any = None
    if members.rank == root:
        try:
            _flat(array, "scatter", writable=False)
            _check_divisible(array, members.size, "scatter")
            told = tuple(array.shape), array.dtype.name
        except CollectiveError as error:
            shown = error.replace(where=error.where or f"rank {root}", agreed=True)
            told = ErrorRecord.of(shown)
    announced: Any = tuple[tuple[int, ...], str] | ErrorRecord
    told = objects.bcast(members.comm, told, announced, root)
    if isinstance(told, ErrorRecord):
        raise told.error()
    shape, dtype = told
    return shape, np.dtype(dtype)


def gather(array: Any, root: int = 0, *, group: ProcessGroup | None = None) -> Any:
    """The arrays of all ranks, stacked, on the root: (P, *shape); None on other ranks."""
    members, flat = resolve_group(group).group(), _flat(array, "gather", writable=False)
    whole = array_module(array).empty((members.size, flat.size), flat.dtype)
    whole[members.rank] = flat
    collectives.gather(whole.reshape(-1), comm=members, root=root)
    return whole.reshape(members.size, *array.shape) if members.rank == root else None


def alltoall(array: Any, *, group: ProcessGroup | None = None, async_op: bool = False) -> Any:
    """Block d of rank s along the first axis becomes block s of rank d.

    Args:
        array: (n, ...), n a multiple of P; unchanged.
        group: The ranks, by default all.
        async_op: Return a Handle at once.

    Returns:
        A new array of the same shape, or a Handle.
    """
    flat, own = _flat(array, "alltoall", writable=False), resolve_group(group)
    _check_divisible(array, own.size, "alltoall")

    def operate(members: Group) -> Any:
        received = array_module(array).empty_like(flat)
        collectives.all_to_all(flat, received, comm=members)
        return received.reshape(array.shape)

    return launch(operate, own, async_op)


def send(array: Any, dest: int, *, tag: int = 0, group: ProcessGroup | None = None) -> None:
    """Send to rank `dest` of the group; returns once the array may be changed."""
    collectives.send(
        _flat(array, "send", writable=False), dest, comm=resolve_group(group).group(), tag=tag
    )


def recv(array: Any, source: int, *, tag: int = 0, group: ProcessGroup | None = None) -> Any:
    """Receive into `array`, of the sender's size and dtype. Returns it."""
    collectives.recv(_flat(array, "recv"), source, comm=resolve_group(group).group(), tag=tag)
    return array


def barrier(*, group: ProcessGroup | None = None) -> None:
    """Return once every rank of the group has called it."""
    collectives.barrier(comm=resolve_group(group).group())


def _check_divisible(array: Any, size: int, what: str) -> None:
    if array.ndim == 0 or array.shape[0] % size:
        raise CollectiveError(
            f"{what} cannot divide an array of shape {array.shape} "
            f"into {size} equal blocks along its first axis",
            remedy=f"make the first axis a multiple of {size}",
        )


def _flat(array: Any, what: str, name: str = "", *, writable: bool = True) -> Any:
    """The array with a single axis, checked; writable: if it is changed in place."""
    checks.array(array, what, name, writable=writable)
    return array.reshape(-1)


def _several(arrays: Any, what: str) -> list[Any]:
    if isinstance(arrays, str | bytes) or not isinstance(arrays, Sequence):
        raise CollectiveError(
            f"{what} needs a list of arrays, got {type(arrays).__name__}",
            remedy="pass [array, ...]",
        )
    return list(arrays)
