"""Refuses what cannot work, before a byte is sent; and checks that ranks agree and that numbers did not overflow."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from mpidl.collectives.combine import FLOAT16, NUMBERS, OP_CODES, OPERATIONS, is_half
from mpidl.comm import mpi
from mpidl.comm.transport import array_module
from mpidl.errors import CollectiveError

if TYPE_CHECKING:
    from mpidl.collectives.group import Group

OPS = {**OP_CODES, "mean": len(OP_CODES)}


def buffer(value: Any, what: str, name: str, *, writable: bool = True) -> None:
    """Raise CollectiveError unless `value` can be sent as it lies in memory and, if `writable`, received into."""
    if not hasattr(value, "dtype") or not hasattr(value, "flags"):
        raise CollectiveError(f"{what} needs an array, got {type(value).__name__}", where=name, remedy="numpy.asarray(...)")
    if value.ndim != 1 or not value.flags.c_contiguous:
        kind = "contiguous" if value.flags.c_contiguous else "not contiguous"
        raise CollectiveError(
            f"{what} needs a 1-D contiguous array, got shape {value.shape}, {kind}",
            where=name,
            remedy="pass array.reshape(-1) of a contiguous array (numpy.ascontiguousarray makes one)",
        )
    if value.dtype.num not in NUMBERS and value.dtype.char not in "FD":
        raise CollectiveError(
            f"{what} cannot send dtype {value.dtype}", where=name, remedy="convert to a float or integer of 8 to 64 bits"
        )
    if writable and not getattr(value.flags, "writeable", True):
        raise CollectiveError(f"{what} works in place, and this array is read-only", where=name, remedy="pass a copy")


def operation(op: str, dtype: Any, name: str) -> None:
    """Raise CollectiveError for an operation that is unknown, or that `dtype` does not have."""
    if op not in OPERATIONS and op != "mean":
        raise CollectiveError(f"unknown operation {op!r}", where=name, remedy=f"choose one of {[*OPERATIONS, 'mean']}")
    if dtype.kind == "c" and op not in ("sum", "mean"):
        raise CollectiveError(f"complex numbers have no {op!r} here", where=name, remedy="use sum or mean")


def peer(rank: int, group: Group, what: str) -> None:
    """Raise CollectiveError unless `rank` is a rank of the group."""
    if not 0 <= rank < group.size:
        raise CollectiveError(f"{what} with rank {rank} in a group of {group.size}", remedy=f"choose 0 to {group.size - 1}")


@cache
def _digest(what: str, name: str) -> int:
    return zlib.crc32(f"{what} {name}".encode()) & 4095


def agreement(group: Group, what: str, value: Any, op: str, name: str) -> None:
    """The desync guard: raise on every rank, saying who does what, unless all do the same. One small native all-reduce."""
    code = ((value.size * 16 + NUMBERS.get(value.dtype.num, 15)) * 8 + OPS[op]) * 4096 + _digest(what, name)
    both = group.guard_buffer
    both[0], both[1] = code, -code
    group.comm.Allreduce(mpi.load().IN_PLACE, both, op=mpi.load().MAX)
    if both[0] == -both[1]:
        return
    mine = f"{what} ({op}) of {value.size} x {value.dtype}" + (f", {name}" if name else "")
    listed = "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(group.comm.allgather(mine)))
    error = CollectiveError(
        f"the ranks disagree on the collective: {listed}",
        remedy="all ranks must call the same collectives in the same order, with equal lengths and dtypes",
    )
    error.agreed = True
    raise error


@contextmanager
def mean(value: Any, op: str, group: Group, name: str) -> Iterator[None]:
    """Around a sum that is to become a mean. 16-bit floats are divided before, so that the sum cannot overflow; integers are
    rounded down, and refused on every rank if their sum does not fit their dtype.
    """
    if op != "mean":
        yield
        return
    integer, half = value.dtype.kind in "iu", is_half(value.dtype)
    if integer:
        _refuse_overflow(value, group, name)
    if half:
        value[...] = (value.astype(np.float32) / group.size).astype(value.dtype)
    yield
    if integer:
        np.floor_divide(value, group.size, out=value, casting="unsafe")
    elif not half:
        array_module(value).divide(value, group.size, out=value)


def _refuse_overflow(value: Any, group: Group, name: str) -> None:
    peak = max(abs(int(value.max())), abs(int(value.min())))
    peaks = group.comm.allgather(peak)
    if sum(peaks) > np.iinfo(value.dtype).max:
        rank = int(np.argmax(np.array(peaks, object)))
        error = CollectiveError(
            f"the mean of {value.dtype} values over {group.size} ranks could overflow: rank {rank} holds {peaks[rank]}",
            where=name,
            remedy="convert to int64 or float64 first",
        )
        error.agreed = True
        raise error


@contextmanager
def overflow(value: Any, op: str, group: Group, name: str, *, everywhere: bool = True) -> Iterator[None]:
    """Around an all-reduce: a float16 result that is not finite although every input was is an error on every rank.

    everywhere: whether all ranks hold the same result; where they do not, each looks at its own.
    """
    if value.dtype != FLOAT16 or op in ("min", "max"):
        yield
        return
    peak = float(np.abs(value).max()) if value.size else 0.0
    yield
    broken = ~np.isfinite(value)
    if not (broken.any() if everywhere else any(group.comm.allgather(bool(broken.any())))):
        return
    peaks = group.comm.allgather(peak)
    if np.isfinite(peaks).all():
        at = f" at element {int(broken.argmax())}" if broken.any() else ""
        error = CollectiveError(
            f"float16 overflow: the {op} over {group.size} ranks exceeds 65504{at}; "
            f"rank {int(np.argmax(peaks))} brought the largest value, {max(peaks):g}",
            where=name,
            remedy="use op='mean', bfloat16 or float32, or scale the values down first",
        )
        error.agreed = True
        raise error
