"""Small values between ranks: typed MessagePack, no pickle.

What comes is decoded into the type that the receiver names, and anything else is refused: a message
can never run code. The functions need nothing of a communicator but collectives on buffers, so that
they work with whatever stands in for one (an encrypted channel).
"""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from mpidl.comm import mpi
from mpidl.comm.activity import recorded
from mpidl.errors import CollectiveError, MpidlError

if TYPE_CHECKING:
    from mpi4py import MPI as MPITypes

T = TypeVar("T")
LARGEST = 1 << 32  # bytes of a value of one rank
STEP = 1 << 30  # bytes of one message: MPI libraries count in 32 bits
_ARRAY = 1  # the MessagePack extension that is an array
_DTYPE = re.compile(r"[<>|][biufcV]\d{1,2}|bfloat16")


class _Array(msgspec.Struct, frozen=True, array_like=True):
    """A NumPy array as it travels."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def pack(value: Any) -> bytes:
    """A value as bytes: plain values, tuples, structs, dataclasses, paths, NumPy arrays."""
    return _encoder().encode(value)


def unpack(raw: Any, kind: Any) -> Any:
    """A value from bytes.

    Args:
        raw: What `pack` has made.
        kind: The type that it must have.

    Raises:
        CollectiveError: The bytes are no value of that type.
    """
    try:
        return _decoder(kind).decode(raw)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise CollectiveError(
            f"a value of another rank is not what was expected ({type(error).__name__})",
            remedy="run the same version of mpidl on all ranks",
        ) from error


@cache
def _encoder() -> msgspec.msgpack.Encoder:
    return msgspec.msgpack.Encoder(enc_hook=_encode)


@cache
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind, dec_hook=_convert, ext_hook=_extension)


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject or value.dtype.names:
            raise TypeError(f"arrays of {value.dtype} do not travel")
        raw = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
        name = value.dtype.name if value.dtype.kind == "V" else value.dtype.str
        return msgspec.msgpack.Ext(_ARRAY, pack(_Array(name, value.shape, raw)))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a {type(value).__name__} does not travel between ranks")


def _extension(code: int, data: memoryview) -> NDArray[Any]:
    if code != _ARRAY:
        raise ValueError("an unknown extension")
    found = msgspec.msgpack.decode(data, type=_Array)
    if not _DTYPE.fullmatch(found.dtype) or any(length < 0 for length in found.shape):
        raise ValueError("no array of numbers")
    dtype = np.dtype(found.dtype)
    if math.prod(found.shape) * dtype.itemsize != len(found.data):
        raise ValueError("an array of another length")
    return np.frombuffer(bytearray(found.data), dtype).reshape(found.shape)


def _convert(kind: Any, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, np.ndarray):
        return value
    raise ValueError("a value of another type")


# --- between ranks ---
def bcast(comm: MPITypes.Intracomm, value: Any, kind: type[T], root: int = 0) -> T:
    """`value` of rank `root` on every rank. Collective.

    Args:
        comm: The ranks.
        value: Ignored on other ranks.
        kind: Its type.
        root: See value.

    Raises:
        CollectiveError: The value has another type, or is larger than 4 GiB.
    """
    mine = comm.Get_rank() == root
    packed = pack(value) if mine else b""
    length = np.array([len(packed)], np.int64)
    with recorded(comm, "bcast"):
        comm.Bcast(length, root=root)
        raw = np.frombuffer(packed, np.uint8) if mine else np.empty(_checked(length[0]), np.uint8)
        for start in range(0, raw.size, STEP):
            comm.Bcast(raw[start : start + STEP], root=root)
    decoded: T = unpack(raw, kind)
    return decoded


def allgather(
    comm: MPITypes.Intracomm, value: Any, kind: type[T], *, limit: int = LARGEST
) -> list[T]:
    """The values of all ranks, in rank order, on every rank. Collective.

    Args:
        comm: The ranks.
        value: This rank's.
        kind: The type of each.
        limit: Bytes that each may have.

    Raises:
        CollectiveError: A value has another type, or is larger.
    """
    packed = pack(value)
    lengths = np.empty(comm.Get_size(), np.int64)
    own = np.frombuffer(packed, np.uint8)
    with recorded(comm, "allgather"):
        comm.Allgather(np.array([len(packed)], np.int64), lengths)
        parts = _gather_bytes(comm, own, [_checked(length, limit) for length in lengths])
    return [unpack(part, kind) for part in parts]


def _gather_bytes(
    comm: MPITypes.Intracomm, own: NDArray[np.uint8], counts: list[int]
) -> list[NDArray[np.uint8]]:
    """The bytes of all ranks, of these lengths."""
    if sum(counts) <= STEP:
        raw = np.empty(sum(counts), np.uint8)
        comm.Allgatherv(own, [raw, counts])
        ends = np.cumsum(counts)
        return [raw[end - count : end] for end, count in zip(ends, counts, strict=True)]
    rank = comm.Get_rank()
    parts = [own if r == rank else np.empty(n, np.uint8) for r, n in enumerate(counts)]
    for root, part in enumerate(parts):
        for start in range(0, part.size, STEP):
            comm.Bcast(part[start : start + STEP], root=root)
    return parts


def smallest(comm: MPITypes.Intracomm, value: int) -> int:
    """The smallest of the ranks' numbers, on every rank. Collective."""
    found = np.array([value], np.int64)
    with recorded(comm, "allreduce"):
        comm.Allreduce(mpi.load().IN_PLACE, found, op=mpi.load().MIN)
    return int(found[0])


def largest(comm: MPITypes.Intracomm, value: float) -> float:
    """The largest of the ranks' numbers, on every rank. Collective."""
    found = np.array([value], np.float64)
    with recorded(comm, "allreduce"):
        comm.Allreduce(mpi.load().IN_PLACE, found, op=mpi.load().MAX)
    return float(found[0])


def _checked(length: Any, limit: int = LARGEST) -> int:
    """The length of a value, within limits."""
    if not 0 <= length <= limit:
        raise CollectiveError(
            f"a value of {int(length)} bytes between ranks",
            remedy=f"values may have {limit} bytes; send arrays by mpidl.collectives",
        )
    return int(length)


# --- errors ---
class ErrorRecord(msgspec.Struct, frozen=True):
    """An MpidlError as it travels: its class by name, and its texts."""

    name: str
    what: str
    where: str
    remedy: str
    agreed: bool

    @classmethod
    def of(cls, error: MpidlError) -> ErrorRecord:
        """Of an error."""
        return cls(type(error).__name__, error.what, error.where, error.remedy, error.agreed)

    def error(self) -> MpidlError:
        """The error; a class that is not known here becomes an MpidlError."""
        known = {kind.__name__: kind for kind in _family(MpidlError)}
        kind = known.get(self.name, MpidlError)
        return kind(self.what, where=self.where, remedy=self.remedy, agreed=self.agreed)


def _family(kind: type[MpidlError]) -> list[type[MpidlError]]:
    return [kind, *(one for child in kind.__subclasses__() for one in _family(child))]
