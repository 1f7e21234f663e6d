"""Refuses what cannot work before a byte is sent; checks agreement and overflows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from mpidl.collectives.engine.reduction import FLOAT16, MEAN, NUMBERS, OP_CODES, call_hash, is_half
from mpidl.collectives.engine.shared import disagreement
from mpidl.comm import mpi, objects
from mpidl.comm.transport import array_module
from mpidl.errors import CollectiveError, SecurityError, nearest

if TYPE_CHECKING:
    from mpidl.collectives.group import Group
    from mpidl.registry import Registry

FIRST_TAG, TAGS = 128, 30_011  # message tags of collectives
LEAST_TAG_UB = 32_767  # what every MPI library allows


def array(value: Any, what: str, name: str, *, writable: bool = True) -> None:
    """Raise CollectiveError unless an array of any shape can be sent as it lies in memory.

    Args:
        value: The array.
        what: The operation, for the message.
        name: What the array is, for the message.
        writable: It is also received into.
    """
    if (
        type(value) is np.ndarray
        and value.flags.carray
        and value.dtype.num in NUMBERS
        and value.dtype.isnative
    ):
        return  # nearly always: the rest says what is wrong
    if not hasattr(value, "dtype") or not hasattr(value, "flags") or isinstance(value, np.generic):
        raise CollectiveError(
            f"{what} needs an array, got {type(value).__name__}",
            where=name,
            remedy="make one: numpy.asarray(...)",
        )
    if value.dtype.num not in NUMBERS and value.dtype.char not in "FD":
        raise CollectiveError(
            f"{what} cannot send dtype {value.dtype}",
            where=name,
            remedy="convert to a float or integer of 8 to 64 bits",
        )
    if not value.dtype.isnative:
        raise CollectiveError(
            f"{what} cannot send dtype {value.dtype.str}: its byte order is not this machine's",
            where=name,
            remedy="convert first: array.astype(array.dtype.newbyteorder('='))",
        )
    if not value.flags.c_contiguous:
        raise CollectiveError(
            f"{what} needs a contiguous array, got shape {value.shape}, not contiguous",
            where=name,
            remedy="numpy.ascontiguousarray makes a copy that is",
        )
    if writable and not getattr(value.flags, "writeable", True):
        raise CollectiveError(
            f"{what} works in place, and this array is read-only", where=name, remedy="pass a copy"
        )


def buffer(value: Any, what: str, name: str, *, writable: bool = True) -> None:
    """As `array`, of a single axis."""
    array(value, what, name, writable=writable)
    if value.ndim != 1:
        raise CollectiveError(
            f"{what} needs a 1-D array, got shape {value.shape}",
            where=name,
            remedy="pass array.reshape(-1)",
        )


def operation(op: str, dtype: Any, name: str) -> None:
    """Raise CollectiveError for an operation that is unknown, or that `dtype` does not have."""
    if not isinstance(op, str) or op not in OP_CODES:
        raise CollectiveError(
            f"unknown operation {op!r}", where=name, remedy=f"choose one of {[*OP_CODES]}"
        )
    if dtype.kind == "c" and op not in ("sum", MEAN):
        raise CollectiveError(
            f"complex numbers have no {op!r} here", where=name, remedy="use sum or mean"
        )


def known(algorithm: str, registry: Registry[Any], where: str) -> None:
    """Raise CollectiveError unless `registry` has `algorithm`."""
    if algorithm not in registry:
        raise CollectiveError(
            f"unknown {registry.kind} {algorithm!r}",
            where=where,
            remedy=nearest(str(algorithm), registry),
        )


def encryptable(algorithm: str, group: Group) -> None:
    """Raise SecurityError for MPI's own all-reduce among ranks that encrypt their messages."""
    if algorithm == "native" and group.protected:
        raise SecurityError(
            "MPI's own all-reduce cannot be encrypted",
            where="algorithm = native",
            remedy='set sync.algorithm = "auto" or another one, or security.channel = "off"',
        )


def peer(rank: int, group: Group, what: str) -> None:
    """Raise CollectiveError unless `rank` is a rank of the group."""
    if not isinstance(rank, int | np.integer) or not 0 <= rank < group.size:
        raise CollectiveError(
            f"{what} with rank {rank!r} in a group of {group.size}",
            remedy=f"choose 0 to {group.size - 1}",
        )


def wire_tag(tag: int, what: str) -> int:
    """The MPI tag for a tag of the user's, apart from those of collectives.

    Raises:
        CollectiveError: It is out of range.
    """
    MPI = mpi.load()
    most = (MPI.COMM_WORLD.Get_attr(MPI.TAG_UB) or LEAST_TAG_UB) - TAGS
    if not isinstance(tag, int | np.integer) or not 0 <= tag <= most:
        raise CollectiveError(
            f"{what} with tag {tag!r}", remedy=f"choose a whole number from 0 to {most}"
        )
    return int(tag) if tag < FIRST_TAG else int(tag) + TAGS


def agreement(group: Group, value: Any = None) -> None:
    """The guard: raise on every rank, naming each rank's call, unless all make the same one.

    Operation, reduction, root and name of the call in progress are compared, and length and dtype
    of `value`. Costs a microsecond in the shared memory of one node, else a small native
    all-reduce.
    """
    number = 0 if value is None else value.size * 16 + NUMBERS.get(value.dtype.num, 15)
    if group.fast is not None:
        group.fast.compare(number)
        return
    mark, both = call_hash(group.call), group.guard_buffer
    both[:] = number, -number, mark, -mark
    group.comm.Allreduce(mpi.load().IN_PLACE, both, op=mpi.load().MAX)
    if both[0] != -both[1] or both[2] != -both[3]:
        raise disagreement(
            range(group.size), objects.allgather(group.comm, str(group.call or ""), str)
        )


def mean(value: Any, group: Group, name: str, add: Callable[[Any], None], count: int) -> None:
    """Replace an array by its mean over ranks.

    The sum of 16-bit floats is one in float32, which is divided and then rounded once. Integers are
    rounded down.

    Args:
        value: (n,) array, changed in place.
        group: The ranks.
        name: What the array is, for messages.
        add: Sums an array over the ranks, in place.
        count: The divisor.

    Raises:
        CollectiveError: On every rank, if the sum of integers does not fit their dtype.
    """
    if is_half(value.dtype):
        wide = value.astype(np.float32)
        add(wide)
        wide /= count
        with np.errstate(over="ignore"):
            value[...] = wide.astype(value.dtype)
        return
    if value.dtype.kind in "iu":
        _refuse_overflow(value, group, name)
    add(value)
    xp = array_module(value)
    if value.dtype.kind in "iu":
        xp.floor_divide(value, count, out=value, casting="unsafe")
    else:
        real = value.view(value.real.dtype)  # of complex numbers both parts, as in shared memory
        xp.divide(real, count, out=real)


def _refuse_overflow(value: Any, group: Group, name: str) -> None:
    if group.guard != "off":
        # before an exchange that ranks with another operation do not take part in
        agreement(group, value)
    peak = max(abs(int(value.max())), abs(int(value.min())))
    peaks = objects.allgather(group.comm, peak, int)
    if sum(peaks) > np.iinfo(value.dtype).max:
        rank = int(np.argmax(np.array(peaks, object)))
        raise CollectiveError(
            f"the mean of {value.dtype} values over {group.size} ranks could overflow: "
            f"rank {rank} holds {peaks[rank]}",
            where=name,
            remedy="convert to int64 or float64 first",
            agreed=True,
        )


@contextmanager
def overflow(
    value: Any, op: str, group: Group, name: str, *, everywhere: bool = True
) -> Iterator[None]:
    """Context manager around a reduction, for `refuse_overflowed`.

    Args:
        value: Its (n,) array.
        op: The reduction.
        group: The ranks.
        name: What the array is, for messages.
        everywhere: All ranks hold the same result; else each looks at its own.
    """
    if value.dtype != FLOAT16 or op in ("min", "max"):
        yield
        return
    peak = float(np.abs(value).max()) if value.size else 0.0
    yield
    refuse_overflowed(value, peak, op, group, name, everywhere=everywhere)


def refuse_overflowed(
    value: Any, peak: float, op: str, group: Group, name: str, *, everywhere: bool = True
) -> None:
    """Refuse a float16 result that is not finite although every input was.

    Args:
        value: The (n,) result.
        peak: The largest magnitude of this rank's input.
        op: The reduction.
        group: The ranks.
        name: What the array is, for messages.
        everywhere: All ranks hold the same result; else each looks at its own.

    Raises:
        CollectiveError: On every rank.
    """
    broken = ~np.isfinite(value)
    if not (broken.any() if everywhere else objects.largest(group.comm, broken.any())):
        return
    peaks = objects.allgather(group.comm, peak, float)
    if np.isfinite(peaks).all():
        at = f" at element {int(broken.argmax())}" if broken.any() else ""
        raise CollectiveError(
            f"float16 overflow: the {op} over {group.size} ranks exceeds 65504{at}; "
            f"rank {int(np.argmax(peaks))} brought the largest value, {max(peaks):g}",
            where=name,
            remedy="use op='mean', bfloat16 or float32, or scale the values down first",
            agreed=True,
        )
