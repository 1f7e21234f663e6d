"""Uneven data: a rank that runs out joins, and contributes neutral elements until all have joined.

In a joinable world (`init(joinable=True)`) every all-reduce begins with a small exchange of what
each rank is about to do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.collectives import Group, all_reduce
from mpidl.collectives.engine.reduction import CODES, MEAN, NUMBERS, OP_CODES
from mpidl.collectives.safety import checks
from mpidl.distributed.groups import ProcessGroup, world
from mpidl.errors import CollectiveError

JOINED = 1


def join() -> int:
    """Declare that this rank has no more data, and wait until all have joined.

    Other ranks may meanwhile only call all-reduces, in the world, and not asynchronously.

    Returns:
        The last rank to join, on all ranks; the highest where several were the last.

    Raises:
        CollectiveError: The world is not joinable.
    """
    own = world()
    if not own.joinable:
        raise CollectiveError(
            "this world is not joinable", where="join", remedy="start with init(joinable=True)"
        )
    group = own.group()
    while True:
        before = own.active
        table = _exchange(own, group, (JOINED, 0, 0, 0))
        if not own.active.any():
            own.active = np.ones(group.size, bool)
            return int(np.flatnonzero(before).max())
        _contribute(group, table[np.flatnonzero(own.active)[0]], int(own.active.sum()))


def announce(array: Any, op: str, own: ProcessGroup) -> int:
    """Tell joined ranks which all-reduce comes next; returns how many have not joined.

    Raises:
        CollectiveError: The array or operation cannot be reduced.
    """
    checks.buffer(array, "all_reduce", "")
    checks.operation(op, array.dtype, "")
    if array.dtype.num not in NUMBERS:
        raise CollectiveError(
            f"all_reduce ({op}) of {array.dtype} cannot be joined",
            remedy="use a float or integer dtype",
        )
    _exchange(own, own.group(), (0, array.size, NUMBERS[array.dtype.num], OP_CODES[op]))
    return int(own.active.sum())


def reduce_among_active(array: Any, op: str, group: Group, active: int) -> None:
    """All-reduce to which joined ranks contribute neutral elements.

    Args:
        array: (n,), changed in place.
        op: The operation; a mean is taken over the active ranks.
        group: All ranks.
        active: How many of them have not joined.
    """

    def add(buffer: Any) -> None:
        all_reduce(buffer, comm=group, op="sum" if op == MEAN else op, name="joined")

    with group.during("all_reduce", array, op, "joined"):
        if op == MEAN:
            checks.mean(array, group, "joined", add, active)
        else:
            add(array)


def _exchange(own: ProcessGroup, group: Group, mine: tuple[int, ...]) -> NDArray[Any]:
    """What each rank is about to do, (P, len(mine)); updates `own.active`."""
    table = np.zeros((group.size, len(mine)), np.int64)
    with group.during("join, or announcement of an all-reduce in a joinable world"):
        group.comm.Allgather(np.array(mine, np.int64), table)
    own.active = table[:, 0] != JOINED
    return table


def _contribute(group: Group, row: NDArray[Any], active: int) -> None:
    """Take part in what an active rank is about to do."""
    _, length, code, op_code = (int(value) for value in row)
    dtype = next(dtype for dtype, known in CODES.items() if known == code)
    op = next(name for name, known in OP_CODES.items() if known == op_code)
    limits: Any = np.iinfo(dtype) if dtype.kind in "iu" else None
    low, high = (limits.min, limits.max) if limits is not None else (-np.inf, np.inf)
    neutral = {"product": 1, "min": high, "max": low}.get(op, 0)
    reduce_among_active(np.full(length, neutral, dtype), op, group, active)
