"""Uneven data: a rank that has nothing left joins, and takes part with neutral elements until all others have joined too.

In a joinable world (`init(joinable=True)`) every all-reduce begins with a small exchange of what each rank is about to do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.collectives import Group, all_reduce
from mpidl.collectives.combine import CODES, NUMBERS, OP_CODES, is_half
from mpidl.comm.transport import array_module
from mpidl.distributed.groups import ProcessGroup, world
from mpidl.errors import CollectiveError

JOINED, MEAN = 1, len(OP_CODES)


def join() -> int:
    """This rank has no more data. Returns, on all ranks, when the last one has joined: the number of that rank.

    Only all-reduces may go on meanwhile, in the world, and not asynchronously.
    """
    own = world()
    if not own.joinable:
        raise CollectiveError("this world is not joinable", where="join", remedy="start with init(joinable=True)")
    group, last = own.group(), 0
    active = np.ones(group.size, bool)
    while True:
        table = _exchange(group, (JOINED, 0, 0, 0))
        joined = table[:, 0] == JOINED
        if joined.all():
            newest = active & joined
            return int(np.flatnonzero(newest).max()) if newest.any() else last
        active = ~joined
        last = int(np.flatnonzero(active).max())
        _contribute(group, table[np.flatnonzero(active)[0]])


def announced(array: Any, op: str, group: Group, own: ProcessGroup) -> int | None:
    """Before an all-reduce in a joinable world: the number of ranks that have not joined. None in other groups."""
    if not own.joinable:
        return None
    codes = {**OP_CODES, "mean": MEAN}
    if array.dtype.num not in NUMBERS or op not in codes:
        raise CollectiveError(f"all_reduce ({op}) of {array.dtype} cannot be joined", remedy="use a float or integer dtype")
    table = _exchange(group, (0, array.size, NUMBERS[array.dtype.num], codes[op]))
    return int((table[:, 0] != JOINED).sum())


def reduce_among_active(array: Any, op: str, group: Group, active: int) -> None:
    """All-reduce in which joined ranks bring neutral elements; the mean is that of the others."""
    all_reduce(array, comm=group, op="sum" if op == "mean" else op, name="joined")
    if op == "mean":
        kind = "unsafe" if array.dtype.kind in "iu" or is_half(array.dtype) else "same_kind"
        divide = array_module(array).floor_divide if array.dtype.kind in "iu" else array_module(array).divide
        divide(array, active, out=array, casting=kind)


def _exchange(group: Group, own: tuple[int, ...]) -> NDArray[Any]:
    table = np.zeros((group.size, len(own)), np.int64)
    group.comm.Allgather(np.array(own, np.int64), table)
    return table


def _contribute(group: Group, row: NDArray[Any]) -> None:
    """Take part in what an active rank is about to do."""
    _, length, code, op_code = (int(value) for value in row)
    dtype = next(dtype for dtype, known in CODES.items() if known == code)
    op = next((name for name, known in OP_CODES.items() if known == op_code), "mean")
    limits: Any = np.iinfo(dtype) if dtype.kind in "iu" else None
    low, high = (limits.min, limits.max) if limits is not None else (-np.inf, np.inf)
    neutral = {"product": 1, "min": high, "max": low}.get(op, 0)
    reduce_among_active(np.full(length, neutral, dtype), op, group, 1)
