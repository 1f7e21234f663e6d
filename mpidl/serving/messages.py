"""Messages between rank 0 and the ranks that compute: a fixed head, then flat bytes. No pickle."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from mpidl.errors import MpidlError
from mpidl.serving.tensors import TensorSpec

Buffer = NDArray[np.uint8]
T = TypeVar("T")
_HEAD = struct.Struct("<BxxxIQIxxxxQQQQ")
HEAD = _HEAD.size


class Kind(IntEnum):
    """What a message is."""

    BATCH = 1  # to a rank: inputs of a batch
    LOAD = 2  # to a rank: open a model, `Load` as JSON
    UNLOAD = 3  # to a rank: forget a model
    STOP = 4  # to a rank: end
    DONE = 5  # from a rank: outputs of a batch, or a `Loaded` as JSON
    FAILED = 6  # from a rank: a message for people
    STEP = 7  # to a rank: go on with texts, `Step` as JSON; the answer is a `Stepped`


class Head(NamedTuple):
    """The fixed part of a message.

    Attributes:
        kind: What it is.
        handle: Of the model.
        number: Of the message; its answer has the same.
        rows: Samples.
        size: Bytes that follow.
        input: Nanoseconds of taking inputs apart, in an answer.
        infer: Nanoseconds of computing.
        output: Nanoseconds of putting outputs together.
    """

    kind: int
    handle: int
    number: int
    rows: int = 0
    size: int = 0
    input: int = 0
    infer: int = 0
    output: int = 0


class Load(msgspec.Struct, frozen=True):
    """What a rank needs to open a model."""

    path: str
    outputs: tuple[str, ...]
    max_batch_size: int
    backend: str
    cache_tokens: int = 0
    cache: Literal["float", "int8"] = "float"


class Loaded(msgspec.Struct, frozen=True):
    """What an opened model is.

    Attributes:
        inputs: What it takes.
        outputs: What it gives.
        digest: Of its parameters.
        file: The checkpoint.
        task: What it was trained for.
        vocabulary: Number of tokens that an input may name; 0: inputs are values.
        class_names: Of classes that were words in the source.
        bytes: Of its parameters.
        context: Tokens of the longest text that it writes; 0: it writes none.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    digest: str
    file: str
    task: str
    vocabulary: int
    class_names: tuple[str, ...]
    bytes: int
    context: int = 0


class Start(msgspec.Struct, frozen=True):
    """A text to go on with.

    Attributes:
        text: Its number.
        prompt: Tokens.
        written: Tokens that another rank has written, before it was lost.
        max_tokens: See `mpidl.generation.Request`.
        temperature: See `mpidl.generation.Sampling`, also for what follows.
        top_k: How many tokens may be drawn.
        top_p: Their probability.
        seed: Of the draws.
    """

    text: int
    prompt: tuple[int, ...]
    written: tuple[int, ...]
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int


class Step(msgspec.Struct, frozen=True):
    """Texts that join and leave before a rank goes on with all that it has."""

    start: tuple[Start, ...] = ()
    cancel: tuple[int, ...] = ()


class Stepped(msgspec.Struct, frozen=True):
    """What a rank has written.

    Attributes:
        written: Number of a text and its new tokens.
        ended: Number of a text and why it ends.
        passes: Of the model.
    """

    written: tuple[tuple[int, tuple[int, ...]], ...]
    ended: tuple[tuple[int, str], ...]
    passes: int


def pack(head: Head, arrays: Sequence[NDArray[Any]] = ()) -> Buffer:
    """A message with the bytes of some arrays, one after the other."""
    size = sum(array.nbytes for array in arrays)
    message = np.empty(HEAD + size, np.uint8)
    set_head(message, head)
    place = HEAD
    for array in arrays:
        part = message[place : place + array.nbytes].view(array.dtype)
        part.reshape(array.shape)[...] = array
        place += array.nbytes
    return message


def set_head(message: Buffer, head: Head) -> None:
    """Write the head of a message; its size is that of the message."""
    _HEAD.pack_into(message.data, 0, *head._replace(size=message.size - HEAD))


def pack_batch(handle: int, number: int, columns: Sequence[Sequence[NDArray[Any]]]) -> Buffer:
    """The message with the inputs of a batch.

    Args:
        handle: Of the model.
        number: Of the message.
        columns: For each input of the model the arrays (rows, ...) of the requests.
    """
    rows = sum(len(array) for array in columns[0])
    return pack(
        Head(Kind.BATCH, handle, number, rows), [array for column in columns for array in column]
    )


def pack_object(head: Head, value: Any) -> Buffer:
    """A message with a struct as JSON."""
    return pack(head, [np.frombuffer(msgspec.json.encode(value), np.uint8)])


def unpack(message: Buffer) -> tuple[Head, Buffer]:
    """Head and body of a message.

    Raises:
        MpidlError: It is cut off or no message.
    """
    if message.size < HEAD:
        raise MpidlError(f"a message of {message.size} bytes is no message of a server")
    head = Head(*_HEAD.unpack_from(message.data))
    if head.kind not in Kind._value2member_map_ or head.size != message.size - HEAD:
        raise MpidlError(f"a message of {message.size} bytes has an impossible head {head}")
    return head, message[HEAD:]


def unpack_object(body: Buffer, kind: type[T]) -> T:
    """The struct in a message.

    Raises:
        MpidlError: It is none.
    """
    try:
        return msgspec.json.decode(body.tobytes(), type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise MpidlError(f"a message cannot be read: {error}") from error


def split(body: Buffer, specs: Sequence[TensorSpec], rows: int) -> list[NDArray[Any]]:
    """The arrays (rows, ...) in a body, as views.

    Raises:
        MpidlError: It has another size.
    """
    if body.size != rows * sum(spec.row_bytes for spec in specs):
        raise MpidlError(f"a message of {rows} samples has {body.size} bytes")
    arrays, place = [], 0
    for spec in specs:
        size = rows * spec.row_bytes
        part = body[place : place + size]
        if place % spec.dtype.itemsize:
            part = part.copy()
        arrays.append(part.view(spec.dtype).reshape(rows, *spec.shape))
        place += size
    return arrays
