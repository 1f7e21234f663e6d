"""Every parser of bytes from outside: what is right is read, anything else is refused in order."""

from __future__ import annotations

import contextlib
import re
import struct
import tomllib
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mpidl.errors import ConfigError, MpidlError
from mpidl.serving.errors import InvalidRequest, ServingError, Unsupported
from mpidl.serving.grpc import CONTENTS, read_message, read_request
from mpidl.serving.json_body import Form, format_response, parse
from mpidl.serving.messages import (
    HEAD,
    Head,
    Kind,
    Load,
    pack,
    pack_batch,
    split,
    unpack,
    unpack_object,
)
from mpidl.serving.server import InferRequest, InferResponse
from mpidl.serving.settings import read_settings
from mpidl.serving.tensors import DTYPES, TensorSpec, convert_numbers, decode_raw, encode_raw
from mpidl.serving.wire import DESCRIPTORS, load_messages

MESSAGES = load_messages()
NUMBERS = [name for name in DTYPES if name != "BYTES"]


def tensors() -> Any:
    """(datatype, array)."""
    shapes = arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)
    plain = [name for name in NUMBERS if name != "BF16"]
    return st.sampled_from(plain).flatmap(
        lambda name: st.tuples(
            st.just(name),
            arrays.arrays(
                DTYPES[name],
                shapes,
                elements={"allow_nan": False, "allow_infinity": False}
                if DTYPES[name].kind == "f"
                else None,
            ),
        )
    )


@given(tensors())
def test_raw_tensors_go_and_come_back(given_: tuple[str, np.ndarray]) -> None:
    name, array = given_
    found = decode_raw("x", name, array.shape, encode_raw(array))
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
    with pytest.raises(InvalidRequest):
        decode_raw("x", name, array.shape, encode_raw(array) + b"1")


def test_bfloat16_and_bytes() -> None:
    array = np.array([1.5, -2], ml_dtypes.bfloat16)
    np.testing.assert_array_equal(decode_raw("x", "BF16", (2,), array.tobytes()), array)
    data = struct.pack("<I3sI", 3, b"abc", 0)
    assert list(decode_raw("x", "BYTES", (2,), data)) == [b"abc", b""]


@given(st.sampled_from([*DTYPES, "FP8"]), st.lists(st.integers(-1, 1 << 50), max_size=20),
       st.binary(max_size=64))  # fmt: skip
@example("UINT8", [0, 1956, 1956, 2_410_749_170_100], b"")
def test_sizes_that_lie_are_refused(datatype: str, shape: list[int], data: bytes) -> None:
    try:
        found = decode_raw("x", datatype, shape, data)
    except InvalidRequest:
        return
    assert found.shape == tuple(shape)
    assert datatype == "BYTES" or found.nbytes == len(data)


@pytest.mark.parametrize(
    ("datatype", "numbers"),
    [("UINT8", [256]), ("INT8", [-129]), ("INT64", [1 << 63]), ("UINT64", [-1]), ("UINT8", [1, 2])],
)
def test_numbers_out_of_range_are_refused(datatype: str, numbers: list[int]) -> None:
    with pytest.raises(InvalidRequest):
        convert_numbers("x", datatype, (1,), numbers)


# --- REST ---
@given(tensors(), st.booleans(), st.booleans())
def test_json_requests(given_: tuple[str, np.ndarray], nested: bool, binary: bool) -> None:
    datatype, array = given_
    one: dict[str, Any] = {"name": "x", "datatype": datatype, "shape": array.shape}
    tail = b""
    if binary:
        tail = encode_raw(array)
        one["parameters"] = {"binary_data_size": len(tail)}
    else:
        one["data"] = array.tolist() if nested else array.ravel().tolist()
    parameters = {"priority": 2, "timeout": 70}
    head = msgspec.json.encode({"id": "a", "inputs": [one], "parameters": parameters})
    request, form = parse(head + tail, len(head) if binary else None, "m", "3")
    assert (request.model, request.version, request.id) == ("m", "3", "a")
    assert (request.priority, request.timeout, request.outputs) == (2, 70, None)
    assert not form.wants_bytes("y")
    name, found = request.inputs[0]
    assert name == "x" and found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
)
KEYS = st.sampled_from(
    ["inputs", "outputs", "name", "shape", "datatype", "data", "parameters", "id",
     "binary_data_size", "binary_data", "priority", "x", "FP32"]
)  # fmt: skip
LIKE = st.recursive(
    st.sampled_from(["x", "FP32", "BYTES", 1, 2, -1, 1.5, True, None, 1 << 70, [1, 2], []]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
)


@given(st.binary(max_size=200) | (JSON | LIKE).map(msgspec.json.encode),
       st.none() | st.integers(-5, 300))  # fmt: skip
def test_any_body_is_read_or_refused(body: bytes, header: int | None) -> None:
    with contextlib.suppress(ServingError):
        request, _ = parse(body, header, "m", "")
        assert isinstance(request, InferRequest)


@pytest.mark.parametrize("depth", [100, 100_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    for where in (b'"data":', b'"parameters":', b'"other":'):
        body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],' + where + deep + b"}]}"
        with pytest.raises(InvalidRequest):
            parse(body, None, "m", "")


def body(**changes: Any) -> bytes:
    one = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]} | changes
    return msgspec.json.encode({"inputs": [one]})


@pytest.mark.parametrize(
    "changes",
    [
        {"data": [1]},
        {"data": [[1], [2]]},
        {"data": ["1", "2"]},
        {"data": [1, None]},
        {"shape": [1, -2]},
        {"shape": [1 << 40, 1 << 40]},
        {"datatype": "FP33"},
        {"datatype": "INT8", "data": [1.5, 2.5]},
        {"parameters": {"binary_data_size": 8}},
        {"parameters": {"binary_data_size": True}, "data": None},
        {"parameters": {"a": {"b": 1}}},
    ],
)
def test_bodies_that_lie_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        parse(body(**changes), None, "m", "")


def test_what_the_server_does_not_have_is_said() -> None:
    with pytest.raises(Unsupported, match="shared_memory_region"):
        parse(body(parameters={"shared_memory_region": "r"}), None, "m", "")


def test_answers_in_json_and_in_bytes() -> None:
    spec, array = TensorSpec("y", "FP32", (2,)), np.array([[1, 2.5]], np.float32)
    response = InferResponse("m", "1", "i", [(spec, array), (spec, array)])
    text, size = format_response(response, Form())
    found = msgspec.json.decode(text)
    assert size is None and found["outputs"][0]["data"] == [1, 2.5] and found["id"] == "i"
    text, size = format_response(response, Form(True))
    assert msgspec.json.decode(text[:size])["outputs"][1]["parameters"] == {"binary_data_size": 8}
    assert text[size:] == array.tobytes() * 2


# --- gRPC ---
def test_the_carried_descriptors_are_those_of_the_proto_file(tmp_path: Any) -> None:
    from scripts.compile_protocol import compile_protocol

    compile_protocol(tmp_path / "made")
    assert (tmp_path / "made").read_bytes() == DESCRIPTORS.read_bytes()


def test_our_fields_are_the_published_ones() -> None:
    from tritonclient.grpc import model_config_pb2, service_pb2

    published: dict[str, Any] = {}
    for module in (service_pb2, model_config_pb2):
        published |= module.DESCRIPTOR.message_types_by_name
    compared = 0
    for name, ours in vars(MESSAGES).items():
        if name == "service":
            continue
        theirs = published[name]
        for field in ours.DESCRIPTOR.fields:
            other = theirs.fields_by_name[field.name]
            assert (field.number, field.type) == (other.number, other.type), (name, field.name)
            compared += 1
    assert compared > 90


@given(tensors())
def test_grpc_requests(given_: tuple[str, np.ndarray]) -> None:
    datatype, array = given_
    message = MESSAGES.ModelInferRequest(model_name="m", id="i")
    message.parameters["timeout"].int64_param = 5
    tensor = message.inputs.add(name="x", datatype=datatype, shape=array.shape)
    if datatype in CONTENTS and array.size:
        getattr(tensor.contents, CONTENTS[datatype]).extend(array.ravel().tolist())
        found = read_request(message)
        np.testing.assert_array_equal(found.inputs[0][1], array)
        assert found.timeout == 5
        message.raw_input_contents.append(encode_raw(array))
        with pytest.raises(InvalidRequest):
            read_request(message)
        tensor.ClearField("contents")
    else:
        message.raw_input_contents.append(encode_raw(array))
    found = read_request(message)
    assert found.inputs[0][1].dtype == array.dtype
    np.testing.assert_array_equal(found.inputs[0][1], array)
    message.raw_input_contents.append(b"")
    with pytest.raises(InvalidRequest):
        read_request(message)


@given(st.binary(max_size=200), st.integers(0, 60), st.binary(max_size=8))
def test_any_bytes_are_read_or_refused(data: bytes, at: int, change: bytes) -> None:
    message = MESSAGES.ModelInferRequest(model_name="m", raw_input_contents=[b"12345678"])
    message.inputs.add(name="x", datatype="FP32", shape=(1, 2))
    good = message.SerializeToString()
    for one in (data, good[:at] + change + good[at + len(change) :]):
        with contextlib.suppress(ServingError):
            read_request(read_message(MESSAGES.ModelInferRequest, one))


# --- between ranks ---
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_batches_between_ranks(rows: list[int]) -> None:
    rng = np.random.default_rng(sum(rows))
    specs = [TensorSpec("a", "UINT8", (3,)), TensorSpec("b", "FP32", (2, 2))]
    columns = [
        [rng.integers(0, 9, (n, *spec.shape)).astype(spec.dtype) for n in rows] for spec in specs
    ]
    head, data = unpack(pack_batch(7, 8, columns))
    assert head[:4] == (Kind.BATCH, 7, 8, sum(rows))
    for column, found in zip(columns, split(data, specs, head.rows), strict=True):
        np.testing.assert_array_equal(np.concatenate(column), found)


@given(st.binary(max_size=200))
def test_any_message_between_ranks_is_read_or_refused(data: bytes) -> None:
    for message in (np.frombuffer(data, np.uint8), pack(Head(1, 2, 3))[: len(data)]):
        with contextlib.suppress(MpidlError):
            head, rest = unpack(message.copy())
            assert head.size == rest.size == message.size - HEAD
            unpack_object(rest, Load)


# --- settings ---
def test_the_example_of_the_docs() -> None:
    page = Path(__file__).parents[2] / "docs" / "serving.md"
    (text,) = re.findall(r"```text\n(\[server\].*?)```", page.read_text(), re.DOTALL)
    settings = read_settings(tomllib.loads(text), page)
    assert settings.models["both"].weight == 2 and len(settings.models["both"].versions) == 2


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ({}, "no model"),
        ({"models": {"../a": {"path": "x"}}}, "no name"),
        ({"models": {"a": {}}}, "either a path or versions"),
        ({"models": {"a": {"path": "x", "max_batch_size": 0}}}, "max_batch_size"),
        ({"models": {"a": {"path": "x", "max_batch": 3}}}, "unknown key"),
        ({"models": {"a": {"versions": {"01": "x"}}}}, "no version"),
        ({"models": {"a": {"path": "x", "preferred_batch_size": [64]}}}, "above max_batch_size"),
        ({"models": {"a": {"path": "x", "default_priority_level": 2}}}, "default_priority_level"),
        ({"models": {"a": {"path": "x", "weight": float("nan")}}}, "finite"),
        ({"models": {"a": {"path": "x"}}, "servers": {}}, "unknown section"),
        ({"models": {"a": {"path": "x"}}, "server": {"in_flight": 0}}, "in_flight"),
    ],
)
def test_impossible_settings_are_refused(tree: dict[str, Any], text: str, tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=text):
        read_settings(tree, tmp_path / "models.toml")
