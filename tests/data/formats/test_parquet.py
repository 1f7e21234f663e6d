"""Tables that pyarrow writes: columns, groups of rows, words, lists; and bad ones."""

from __future__ import annotations

import decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpidl.data import formats
from mpidl.data.formats.source import NO_ROLES, Roles
from mpidl.data.writer import WriteOptions, write_dataset
from mpidl.errors import DataError

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
feather = pytest.importorskip("pyarrow.feather")


def open_source(paths: list[Path], roles: Roles = NO_ROLES) -> Any:
    return formats.open_source(paths, roles.labels, features=roles.features)


def columns(rows: int = 50) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "a": rng.normal(size=rows),
        "kind": [("dog", "cat", "emu")[row % 3] for row in range(rows)],
        "b": np.arange(rows, dtype=np.int16),
        "c": rng.normal(size=rows).astype(np.float32),
    }


def write(path: Path, table: Any, group: int = 7) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=group)
    elif path.suffix == ".feather":
        feather.write_feather(table, path, chunksize=group)
    else:
        with arrow.OSFile(str(path), "wb") as file, arrow.ipc.new_file(file, table.schema) as out:
            out.write_table(table, max_chunksize=group)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    group=st.integers(1, 60),
    cut=st.tuples(st.integers(0, 50), st.integers(0, 50)),
    border=st.integers(1, 49),
)
def test_any_range_of_any_groups_and_files(
    tmp_path: Path, suffix: str, group: int, cut: tuple[int, int], border: int
) -> None:
    table = arrow.table(columns())
    paths = [
        write(tmp_path / f"1{suffix}", table[:border], group),
        write(tmp_path / f"2{suffix}", table[border:], group),
    ]
    source = open_source(paths, Roles(labels=("kind",)))
    start, stop = sorted(cut)
    found = source.read(start, stop)
    expected = np.column_stack([columns()[name] for name in "abc"]).astype(np.float32)
    np.testing.assert_array_equal(found["features"], expected[start:stop])
    assert source.samples == 50 and source.class_names == ("cat", "dog", "emu")
    assert found["label"].tolist() == [(1, 0, 2)[row % 3] for row in range(start, stop)]
    assert source.roles == {"features": "feature"} and source.label == "label"


def test_kinds_of_labels(tmp_path: Path) -> None:
    table = arrow.table(
        {
            "x": [1, 2, 3],
            "categories": arrow.array(["b", "a", "b"]).dictionary_encode(),
            "real": [0.5, 1.5, 2.5],
            "flag": [True, False, True],
            "price": arrow.array([decimal.Decimal(n) for n in (1, 2, 3)]),
        }
    )
    path = write(tmp_path / "a.parquet", table)

    def label(*names: str) -> Any:
        return open_source([path], Roles(("x",), names)).read(0, 3)["label"]

    assert label("categories").tolist() == [1, 0, 1]
    assert label("real").dtype == np.float32 and label("flag").tolist() == [1, 0, 1]
    assert label("price").tolist() == [1, 2, 3] and label("price").dtype == np.float32
    assert label("real", "price").tolist() == [[0.5, 1], [1.5, 2], [2.5, 3]]
    with pytest.raises(DataError, match="'categories' holds words"):
        label("real", "categories")


def test_columns_of_lists_are_arrays(tmp_path: Path) -> None:
    x = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
    fixed = arrow.FixedSizeListArray.from_arrays(
        arrow.FixedSizeListArray.from_arrays(arrow.array(x.reshape(-1)), 2), 3
    )
    tensors = arrow.FixedShapeTensorArray.from_numpy_ndarray(x.astype(np.float32))
    lists = arrow.array(x.reshape(4, 6).tolist(), arrow.list_(arrow.int32()))
    table = arrow.table(
        {"image": fixed, "tensor": tensors, "list": lists, "n": [1, 2, 3, 4], "y": [0, 1, 0, 1]}
    )
    source = open_source([write(tmp_path / "a.parquet", table, 3)])
    found = source.read(1, 4)
    np.testing.assert_array_equal(found["image"], x[1:])
    np.testing.assert_array_equal(found["tensor"], x[1:])
    np.testing.assert_array_equal(found["list"], x.reshape(4, 6)[1:])
    assert found["features"].tolist() == [[2], [3], [4]] and found["label"].tolist() == [1, 0, 1]
    assert source.roles == dict.fromkeys(("features", "image", "tensor", "list"), "feature")
    assert source.read(0, 0)["image"].shape == source.read(4, 4)["image"].shape == (0, 3, 2)


def test_a_table_without_label_says_what_could_be_one(tmp_path: Path) -> None:
    table = arrow.table({"w": [0.5] * 9, "kind": [0, 1, 2] * 3})
    assert open_source([write(tmp_path / "a.parquet", table)]).candidates == ("kind",)


WRONG: dict[str, tuple[Any, Roles, str]] = {
    "words": ({"x": [1.0], "name": ["a"]}, Roles(("x", "name")), "'name' holds string"),
    "words without a choice": ({"x": [1.0], "name": ["a"]}, Roles(), "--label name"),
    "a gap": ({"x": [1.0, None, 2.0], "y": [0, 1, 0]}, Roles(), "row 1 has no value in column 'x'"),
    "a gap in the label": ({"x": [1.0, 2.0], "y": ["a", None]}, Roles(), "row 1 .* 'y'"),
    "ragged lists": ({"x": [[1], [1, 2]], "y": [0, 1]}, Roles(), "lists of 1 to 2 elements"),
    "a gap in a list": ({"x": [[1, None], [1, 2]], "y": [0, 1]}, Roles(), "has a gap"),
    "structs": ({"x": [{"a": 1}], "y": [0]}, Roles(), "'x' holds struct"),
    "bytes": ({"x": [b"a"], "y": [0]}, Roles(), "'x' holds binary"),
    "no such column": ({"x": [1], "y": [0]}, Roles(labels=("z",)), "no column 'z'"),
    "no such feature": ({"x": [1], "y": [0]}, Roles(features=("z",)), "--feature"),
    "a name taken twice": (
        {"features": [[1, 2]], "a": [1.0], "y": [0]},
        Roles(),
        "has the name of the field",
    ),
    "a list beside a number": (
        {"x": [1.0], "u": [[1, 2]], "v": [1]},
        Roles(labels=("u", "v")),
        "'u' holds lists",
    ),
    "no rows": ({"x": arrow.array([], arrow.int32())}, Roles(), "no rows"),
    "only a label": ({"y": [1]}, Roles(), "no other column"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tables(tmp_path: Path, name: str) -> None:
    content, roles, words = WRONG[name]
    path = write(tmp_path / "a.parquet", arrow.table(content))
    with pytest.raises(DataError, match=words) as caught:
        open_source([path], roles)
    assert caught.value.where == str(path) and caught.value.remedy


def test_numbers_that_are_none(tmp_path: Path, context: Any) -> None:
    for value in (np.nan, 1e300):  # NaN, and infinity as float32
        path = write(tmp_path / "a.parquet", arrow.table({"x": [1.0, value], "y": [0, 1]}))
        with pytest.raises(DataError, match="'features' of sample 1 of the source holds a NaN"):
            write_dataset(
                open_source([path]), tmp_path / "set", WriteOptions(1), context, lambda count: None
            )


def test_files_that_differ(tmp_path: Path) -> None:
    first = write(tmp_path / "1.parquet", arrow.table({"x": [1.0], "y": [1]}))
    other = write(tmp_path / "2.parquet", arrow.table({"x": [1], "y": [1]}))
    third = write(tmp_path / "3.parquet", arrow.table({"z": [1.0], "y": [1]}))
    with pytest.raises(DataError, match=r"'x' holds int64, where .* has double") as caught:
        open_source([first, other])
    assert caught.value.where == str(other)
    with pytest.raises(DataError, match="has the columns z, y, where"):
        open_source([first, third])
    ragged = write(tmp_path / "4.parquet", arrow.table({"x": [[1, 2], [1, 2, 3]]}), 1)
    with pytest.raises(DataError, match="changes their length"):
        open_source([ragged]).read(0, 2)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_damaged_files(tmp_path: Path, suffix: str) -> None:
    whole = write(tmp_path / f"a{suffix}", arrow.table(columns())).read_bytes()
    bad = tmp_path / f"b{suffix}"
    for content in (b"", b"PAR1", whole[:-50], whole[: len(whole) // 2], b"x" * 1000):
        bad.write_bytes(content)
        with pytest.raises(DataError) as caught:
            open_source([bad], Roles(labels=("kind",)))
        assert caught.value.where == str(bad) and caught.value.remedy
    rng = np.random.default_rng(0)
    for _ in range(60):  # either an error of ours or some numbers, never a crash
        spoiled = bytearray(whole)
        for position in rng.integers(0, len(whole), 8):
            spoiled[position] = rng.integers(0, 256)
        bad.write_bytes(spoiled)
        try:
            source = open_source([bad], Roles(labels=("kind",)))
            source.read(0, source.samples)
        except DataError:
            pass
