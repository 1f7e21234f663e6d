"""Values between ranks: what arrives is what was sent, in the type that was asked for."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mpidl.comm.objects import ErrorRecord, pack, unpack
from mpidl.errors import CollectiveError, DataError, MpidlError

ROUNDS = int(os.environ.get("MPIDL_TEST_FUZZ", "100"))


@dataclass
class Point:
    x: float
    path: Path
    row: np.ndarray


class Pair(NamedTuple):
    name: str
    count: int


VALUES: list[tuple[Any, Any]] = [
    (None, None),
    (True, bool),
    (-(1 << 63), int),
    ((1 << 64) - 1, int),
    (float("inf"), float),
    ("ünï", str),
    (b"\0\xff", bytes),
    ((1, "a"), tuple[int, str]),
    ({1: "a"}, dict[int, str]),
    ({3, 4}, set[int]),
    (Pair("a", 3), Pair),
    ([Path("/tmp/a")], list[Path]),
    ({"a": {"b": [1, None, 2.5]}}, dict[str, Any]),
]


@pytest.mark.parametrize(("value", "kind"), VALUES)
def test_values_arrive(value: Any, kind: Any) -> None:
    got = unpack(pack(value), kind)
    assert got == value and type(got) is type(value)


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from(["f4", "f8", "i1", "u8", "?", "c8", "f2", ">i2"]),
        hnp.array_shapes(min_dims=0, min_side=0, max_side=4),
    )
)
def test_arrays_arrive(array: Any) -> None:
    got = unpack(pack({"x": array}), dict[str, np.ndarray])["x"]
    assert got.dtype == array.dtype and got.shape == array.shape and got.flags.writeable
    assert got.tobytes() == np.ascontiguousarray(array).tobytes()


def test_structures_with_arrays_and_small_floats_arrive() -> None:
    row = np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3)
    got = unpack(pack(Point(0.5, Path("a"), row)), Point)
    assert (got.x, got.path) == (0.5, Path("a")) and got.row.dtype == row.dtype
    assert (got.row == row).all() and unpack(pack(np.float32(2)), float) == 2


@pytest.mark.parametrize(
    ("value", "kind"),
    [("a", int), (1, str), ([1], tuple[str, ...]), (np.ones(3), int), ("a", np.ndarray),
     (1.5, int), ({"a": 1}, Pair), (3, Path)],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(value: Any, kind: Any) -> None:
    with pytest.raises(CollectiveError, match="not what was expected"):
        unpack(pack(value), kind)


@pytest.mark.parametrize("value", [object(), print, np.array([print]), lambda: 1])
def test_what_is_no_plain_value_does_not_travel(value: Any) -> None:
    with pytest.raises(TypeError):
        pack(value)


def test_arrays_that_lie_about_themselves_are_refused() -> None:
    def forge(dtype: str, shape: list[int], data: bytes) -> bytes:
        inner = msgspec.msgpack.encode([dtype, shape, data])
        return msgspec.msgpack.encode(msgspec.msgpack.Ext(1, inner))

    assert unpack(forge("<f4", [2], bytes(8)), np.ndarray).shape == (2,)
    for lie in (
        forge("<f4", [3], bytes(8)),
        forge("<f4", [-2], bytes(8)),
        forge("<f4", [1 << 62, 1 << 62], bytes(8)),
        forge("|O8", [1], bytes(8)),
        forge("|V8", [1], b""),
        forge("f4,f4", [1], bytes(8)),
        msgspec.msgpack.encode(msgspec.msgpack.Ext(2, b"")),
    ):
        with pytest.raises(CollectiveError):
            unpack(lie, np.ndarray)


@settings(max_examples=ROUNDS, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([int, dict[str, Any], np.ndarray, Point, Any]))
def test_noise_is_refused_or_of_that_type(noise: bytes, kind: Any) -> None:
    try:
        got = unpack(noise, kind)
    except CollectiveError:
        return
    assert kind is Any or isinstance(got, kind if isinstance(kind, type) else dict)


def test_a_pickle_runs_nothing() -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.abort, ()

    with pytest.raises(CollectiveError):
        unpack(pickle.dumps(Trap()), dict[str, Any])


def test_errors_keep_their_class_and_texts() -> None:
    sent = DataError("broken", where="a.h5", remedy="mend it", agreed=True)
    got = unpack(pack(ErrorRecord.of(sent)), ErrorRecord).error()
    assert type(got) is DataError and str(got) == str(sent) and got.agreed
    unknown = ErrorRecord("os.abort", "what", "where", "remedy", False).error()
    assert type(unknown) is MpidlError and "what" in str(unknown)
