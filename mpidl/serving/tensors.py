"""Tensors of the protocol: names of dtypes, bytes and numbers from outside, checked.

Source: Open Inference Protocol 2, "Tensor Data" and the binary tensor data extension of Triton.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
from numpy.typing import NDArray

from mpidl.serving.errors import InvalidRequest

BYTES = "BYTES"
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    BYTES: np.dtype(np.object_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MOST_AXES = 16
MOST_ELEMENTS = 1 << 40  # a product of sizes beyond is a lie
_LENGTH = struct.Struct("<I")


class TensorSpec(msgspec.Struct, frozen=True):
    """A tensor that a model takes or gives.

    Attributes:
        name: Its name.
        datatype: Of the protocol.
        shape: Of one sample.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """As NumPy has it."""
        return DTYPES[self.datatype]

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample."""
        return math.prod(self.shape) * self.dtype.itemsize


def check_datatype(name: str, datatype: str) -> np.dtype[Any]:
    """The dtype of a tensor.

    Raises:
        InvalidRequest: The protocol has no such datatype.
    """
    if datatype not in DTYPES:
        raise InvalidRequest(
            f"input {name[:80]!r} has the datatype {datatype[:20]!r}, which is none of the "
            f"protocol: {', '.join(DTYPES)}"
        )
    return DTYPES[datatype]


def count_elements(name: str, shape: Sequence[int]) -> int:
    """The number of elements of a shape.

    Raises:
        InvalidRequest: The shape is impossible.
    """
    if len(shape) > MOST_AXES or any(size < 0 for size in shape):
        raise InvalidRequest(f"input {name[:80]!r} has an impossible shape {list(shape)[:20]}")
    # Sizes beside a 0 count too: NumPy refuses an empty array of astronomic other axes.
    if math.prod(max(size, 1) for size in shape) > MOST_ELEMENTS:
        raise InvalidRequest(f"input {name[:80]!r} has too many elements, {list(shape)}")
    return math.prod(shape)


def decode_raw(
    name: str, datatype: str, shape: Sequence[int], data: bytes | memoryview
) -> NDArray[Any]:
    """A tensor from its bytes (little endian, row-major).

    Args:
        name: For messages.
        datatype: Of the protocol.
        shape: As the client says.
        data: The bytes; numbers are not copied.

    Raises:
        InvalidRequest: Shape, datatype and number of bytes do not fit together.
    """
    dtype, count = check_datatype(name, datatype), count_elements(name, shape)
    if datatype == BYTES:
        return _decode_bytes(name, count, data).reshape(shape)
    wanted = count * dtype.itemsize
    if len(data) != wanted:
        raise InvalidRequest(
            f"input {name[:80]!r} has {len(data)} bytes, but {datatype} of shape {list(shape)} "
            f"takes {wanted}"
        )
    if datatype == "BOOL":
        return np.not_equal(np.frombuffer(data, np.uint8), 0).reshape(shape)
    found: NDArray[Any] = np.frombuffer(data, dtype).reshape(shape)
    return found


def _decode_bytes(name: str, count: int, data: bytes | memoryview) -> NDArray[Any]:
    """Elements that follow their lengths, 4 bytes each."""
    found: list[bytes] = []
    place = 0
    while place + _LENGTH.size <= len(data) and len(found) < count:
        (length,) = _LENGTH.unpack_from(data, place)
        place += _LENGTH.size
        if length > len(data) - place:
            raise InvalidRequest(f"input {name[:80]!r}: an element of BYTES is cut off")
        found.append(bytes(data[place : place + length]))
        place += length
    if place != len(data) or len(found) != count:
        raise InvalidRequest(
            f"input {name[:80]!r} has {len(found)} elements of BYTES in {len(data)} bytes, but "
            f"its shape takes {count}"
        )
    array = np.empty(count, np.object_)
    array[:] = found
    return array


def convert_numbers(
    name: str, datatype: str, shape: Sequence[int], numbers: Sequence[Any]
) -> NDArray[Any]:
    """A tensor from numbers in row-major order, of JSON or of the typed contents of gRPC.

    Args:
        name: For messages.
        datatype: Of the protocol.
        shape: As the client says.
        numbers: All elements, of the right Python type.

    Raises:
        InvalidRequest: There are more or fewer, or one is out of range.
    """
    dtype, count = check_datatype(name, datatype), count_elements(name, shape)
    if len(numbers) != count:
        raise InvalidRequest(
            f"input {name[:80]!r} has {len(numbers)} elements, but its shape {list(shape)} takes "
            f"{count}"
        )
    if datatype == BYTES:
        array = np.empty(count, np.object_)
        array[:] = numbers
        return array.reshape(shape)
    try:
        if dtype.kind in "iu":
            wide = np.array(numbers, np.uint64 if datatype == "UINT64" else np.int64)
            found = wide.astype(dtype)
            if not np.array_equal(found, wide):
                raise OverflowError
        else:
            found = np.asarray(np.array(numbers, np.float64), dtype)
    except (OverflowError, ValueError, TypeError) as error:
        what = f"input {name[:80]!r} has elements that are no {datatype}"
        raise InvalidRequest(what) from error
    return found.reshape(shape)


def encode_raw(array: NDArray[Any]) -> bytes:
    """The bytes of an output."""
    return np.ascontiguousarray(array).tobytes()
