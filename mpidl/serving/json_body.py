"""Requests and answers of REST: JSON, with tensors in it or as bytes behind it.

Source: Open Inference Protocol 2 and Triton's "Binary Tensor Data Extension".
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mpidl.serving.errors import InvalidRequest, Unsupported
from mpidl.serving.server import MOST_INPUTS, InferRequest, InferResponse
from mpidl.serving.tensors import (
    BYTES,
    MOST_AXES,
    check_datatype,
    convert_numbers,
    decode_raw,
    encode_raw,
)

Parameters = dict[str, bool | int | float | str | None]
Shape = Annotated[list[int], msgspec.Meta(max_length=MOST_AXES)]
REFUSED = ("shared_memory_region", "classification", "sequence_id")


class _Input(msgspec.Struct):
    name: str
    datatype: str
    shape: Shape
    parameters: Parameters = {}
    data: msgspec.Raw = msgspec.Raw()

    @property
    def has_data(self) -> bool:
        return memoryview(self.data).nbytes > 0


class _Output(msgspec.Struct):
    name: str
    parameters: Parameters = {}


class _Body(msgspec.Struct):
    inputs: Annotated[list[_Input], msgspec.Meta(max_length=MOST_INPUTS)]
    id: str = ""
    parameters: Parameters = {}
    outputs: Annotated[list[_Output], msgspec.Meta(max_length=MOST_INPUTS)] | None = None


_BODY: msgspec.json.Decoder[_Body] = msgspec.json.Decoder(_Body)


class Form(msgspec.Struct):
    """How the client wants the answer.

    Attributes:
        binary: Outputs that are wanted as bytes; True: all.
    """

    binary: bool | set[str] = False

    def wants_bytes(self, name: str) -> bool:
        """Whether an output is wanted as bytes."""
        return self.binary if isinstance(self.binary, bool) else name in self.binary


@cache
def _decoder(datatype: str, depth: int) -> msgspec.json.Decoder[Any]:
    """Of lists of numbers, one inside the other."""
    kind = check_datatype("", datatype).kind
    element: Any = {"b": bool, "O": str}.get(kind, int if kind in "iu" else float)
    for _ in range(depth):
        element = list[element]
    return msgspec.json.Decoder(element)


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Refuse what the server does not have.

    Raises:
        Unsupported: The client asks for it.
    """
    for name in REFUSED:
        if parameters.get(name):
            raise Unsupported(f"the server does not have the extension of {name!r}")


def whole_number(parameters: Mapping[str, Any], name: str) -> int:
    """A parameter of a request; 0 where it is not given.

    Raises:
        InvalidRequest: It is no whole number.
    """
    value = parameters.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"the parameter {name!r} must be a whole number")
    return value


def parse(
    body: bytes | bytearray | memoryview, header: int | None, model: str, version: str
) -> tuple[InferRequest, Form]:
    """The request in a body.

    Args:
        body: JSON, and behind it the tensors that are given as bytes.
        header: Bytes of JSON (Inference-Header-Content-Length); None: all.
        model: Name, from the address.
        version: From the address.

    Raises:
        ServingError: It is malformed.
    """
    view = memoryview(body)
    if header is not None and not 0 <= header <= len(view):
        raise InvalidRequest(f"Inference-Header-Content-Length is {header} of {len(view)} bytes")
    size = len(view) if header is None else header
    try:
        found = _BODY.decode(view[:size])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"failed to parse the request JSON: {str(error)[:300]}") from error
    check_parameters(found.parameters)
    inputs, rest = [], view[size:]
    for one in found.inputs:
        array, rest = _read_input(one, rest)
        inputs.append((one.name, array))
    if len(rest):
        raise InvalidRequest(f"{len(rest)} bytes behind the last tensor belong to no input")
    outputs = found.outputs or []
    for output in outputs:
        check_parameters(output.parameters)
    request = InferRequest(
        model,
        version,
        found.id,
        inputs,
        [output.name for output in outputs] or None,
        whole_number(found.parameters, "priority"),
        whole_number(found.parameters, "timeout"),
    )
    default = found.parameters.get("binary_data_output") is True
    binary = {o.name for o in outputs if o.parameters.get("binary_data", default) is True}
    return request, Form(binary if outputs else default)


def _read_input(one: _Input, rest: memoryview) -> tuple[NDArray[Any], memoryview]:
    """A tensor, and the bytes behind it."""
    check_parameters(one.parameters)
    size = one.parameters.get("binary_data_size")
    if size is None:
        return _read_numbers(one), rest
    size = whole_number(one.parameters, "binary_data_size")
    if one.has_data:
        raise InvalidRequest(f"input {one.name[:80]!r} has both data and binary_data_size")
    if not 0 <= size <= len(rest):
        raise InvalidRequest(
            f"input {one.name[:80]!r} has a binary_data_size of {size}, but {len(rest)} bytes "
            "are left"
        )
    return decode_raw(one.name, one.datatype, one.shape, rest[:size]), rest[size:]


def _read_numbers(one: _Input) -> NDArray[Any]:
    """A tensor in JSON: a flat list, or lists in lists of the given shape."""
    check_datatype(one.name, one.datatype)
    if not one.has_data:
        raise InvalidRequest(f"input {one.name[:80]!r} has no data")
    error: Exception | None = None
    for depth in dict.fromkeys((1, max(1, len(one.shape)))):
        try:
            numbers = _decoder(one.datatype, depth).decode(one.data)
        except (msgspec.MsgspecError, RecursionError) as caught:
            error = caught
            continue
        numbers = _flatten(one, numbers, depth)
        if one.datatype == BYTES:
            numbers = [text.encode() for text in numbers]
        return convert_numbers(one.name, one.datatype, one.shape, numbers)
    what = f"input {one.name[:80]!r}: data are no numbers of {one.datatype}: {str(error)[:200]}"
    raise InvalidRequest(what)


def _flatten(one: _Input, numbers: list[Any], depth: int) -> list[Any]:
    """The elements of lists in lists, each of which must be as long as the shape says."""
    for size in one.shape[1:depth]:
        if any(len(inner) != size for inner in numbers):
            raise InvalidRequest(f"input {one.name[:80]!r}: its lists have another shape")
        numbers = [element for inner in numbers for element in inner]
    return numbers


def format_response(response: InferResponse, form: Form) -> tuple[bytes, int | None]:
    """The body of an answer.

    Args:
        response: The answer.
        form: As the client wants it.

    Returns:
        The body, and the bytes of JSON in it if others follow.
    """
    described: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for spec, array in response.outputs:
        one: dict[str, Any] = {
            "name": spec.name,
            "datatype": spec.datatype,
            "shape": list(array.shape),
        }
        if form.wants_bytes(spec.name):
            tail.append(encode_raw(array))
            one["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            one["data"] = np.ravel(array).tolist()
        described.append(one)
    head: dict[str, Any] = {
        "model_name": response.model,
        "model_version": response.version,
        "outputs": described,
    }
    if response.id:
        head["id"] = response.id
    text = msgspec.json.encode(head)
    return (b"".join([text, *tail]), len(text)) if tail else (text, None)
