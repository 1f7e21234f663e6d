"""Tables of text: any separator, with and without a header, and errors that name the line."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpidl.data.formats.csv import read_table
from mpidl.data.formats.source import Roles
from mpidl.errors import DataError


@pytest.fixture
def table(tmp_path: Path) -> Any:
    """table(text, ...): what read_table makes of a file with this text."""

    def read(
        text: str | bytes, name: str = "a.csv", label: str | None = None, **options: Any
    ) -> Any:
        if label is not None:
            options["roles"] = Roles(labels=(label,))
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_table(path, **options)

    return read


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_any_separator(table: Any, separator: str, ending: str) -> None:
    found = table(
        separator.join(["a", "label", "b"]) + ending + separator.join(["1.5", "0", "-2e3"]) + ending
    )
    assert (
        found.columns == ("a", "b")
        and found.features.tolist() == [[1.5, -2000]]
        and found.label.tolist() == [0]
    )


def test_decimal_commas(table: Any) -> None:
    found = table("breite;höhe;art\n1,5;2;x\n3;4,25;y\n", label="art")
    assert found.features.tolist() == [[1.5, 2], [3, 4.25]] and found.class_names == ("x", "y")
    assert any("decimal comma" in note for note in found.notes)
    assert not table("a,b\n1,2\n").notes


def test_a_file_without_header_keeps_its_first_line(table: Any) -> None:
    found = table("1,2,3\n4,5,6\n")
    assert found.features.tolist() == [[1, 2, 3], [4, 5, 6]] and found.columns == (
        "column1",
        "column2",
        "column3",
    )
    assert any("no header" in note and "column1 to column3" in note for note in found.notes)
    found = table("5.1,3.5,setosa\n4.9,3.0,virginica\n", label="column3")
    assert found.class_names == ("setosa", "virginica") and len(found.features) == 2


def test_the_header_can_be_said(table: Any) -> None:
    assert len(table("1,2\n3,4\n", header=True).features) == 1
    assert table("1,2\n3,4\n", header=False).columns == ("column1", "column2")
    assert not table("1,2\n3,4\n", header=False).notes
    assert table("0,1,species\n7,8,cat\n9,9,dog\n", label="species").columns == ("0", "1"), (
        "pandas numbers its columns"
    )


@pytest.mark.parametrize("text", [b"\xef\xbb\xbfa,y\n1,0\n", "\na,y\n\n1,0\n\n,\n"])
def test_marks_and_empty_lines(table: Any, text: str | bytes) -> None:
    found = table(text)
    assert (
        found.columns == ("a",) and found.features.tolist() == [[1]] and found.label.tolist() == [0]
    )


def test_gzip(table: Any) -> None:
    assert table(gzip.compress(b"a;y\n1;0\n"), "a.csv.gz").columns == ("a",)
    with pytest.raises(DataError, match=r"cannot be read|damaged"):
        table(gzip.compress(b"a;y\n1;0\n" * 100)[:-12], "a.csv.gz")


def test_labels(table: Any) -> None:
    assert table("a,y\n1,7\n2,0\n").label.tolist() == [7, 0]
    assert table("a,y\n1,2.0\n2,0.0\n").label.dtype == np.int64, (
        "whole numbers that a program wrote as floats"
    )
    real = table("a,y\n1,0.25\n2,17\n")
    assert real.label.dtype == np.float32 and real.class_names is None, (
        "real numbers are no classes"
    )
    assert table("x,Class,y2\n1,b,3\n1,a,3\n").class_names == ("a", "b")


def test_candidates_for_the_label(table: Any) -> None:
    found = table("width,kind,id\n" + "".join(f"{n / 7},{n % 3},{n}\n" for n in range(40)))
    assert found.label is None and found.candidates == ("kind",)
    assert table("a,b\n1.5,2.5\n").candidates == ("a", "b")


WRONG: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "a short line": (
        "a,b,c\n1,2,3\n4,5\n6,7,8\n",
        {},
        ["line 3 has 2 column(s), most lines have 3", "comma"],
    ),
    "a long line": ("a;b\n1;2\n3;4\n3;4;5\n", {}, ["line 4 has 3 column(s)", "semicolon"]),
    "a quoted line break before": (
        'a,b\n"1",2\n"3\n",4\nx,5\n',
        {},
        ["line 5 has 'x' in column 'a'"],
    ),
    "a word": ("a,b\n1,2\n3,four\n", {}, ["line 3 has 'four' in column 'b'", "1 of 2 values"]),
    "a gap": ("a,b\n1,2\n3,\n", {}, ["line 3 has no value in column 'b'"]),
    "a column of words": (
        "a,species\n1,cat\n2,dog\n",
        {},
        ["'cat' in column 'species'", "--label species"],
    ),
    "spaces": ("a b\n1 2\n", {}, ["'1 2'"]),
    "a label that is not there": ("a,b\n1,2\n", {"label": "c"}, ["no column 'c'", "a, b"]),
    "a label twice": ("a,b,b\n1,2,3\n", {"label": "b"}, ["several columns 'b'"]),
    "two usual labels": ("y,a,label\n1,2,3\n", {}, ["'y', 'label'", "--label"]),
    "a label that is empty": ("a,y\n1,2\n3,\n", {}, ["line 3 has no label", "'y'"]),
    "numbers and words": (
        "a,y\n1,0\n1,NA\n",
        {},
        ["mixes numbers (line 2: '0') and words (line 3: 'NA')"],
    ),
    "a huge label": ("a,y\n1,99999999999999999999\n", {}, ["too large"]),
    "a label of many digits": (
        "a,y\n1,1\n2," + "9" * 5000 + "\n",
        {},
        ["line 3 has the label '99999", "not finite"],
    ),
    "a label beyond 64 bits": ("a,y\n1,0.0\n2,9.3e18\n", {}, ["too large"]),
    "an infinite label": ("a,y\n1,0\n2,inf\n", {}, ["line 3 has the label 'inf'", "not finite"]),
    "a label that is NaN": ("a,y\n1,0\n2,nan\n", {}, ["line 3 has the label 'nan'", "not finite"]),
    "a number with underscores": ("a,b\n1,2\n3,1_000\n", {}, ["line 3 has '1_000' in column 'b'"]),
    "a quote that never ends": ('a,y\n1,"x\n2,1\n3,0\n', {}, ["line 2 on", "quote"]),
    "a quote that ends too early": ('a,y\n1,"x"y\n2,1\n', {}, ["line 2 on", "quote"]),
    "commas and points": (
        "a;b\n1.5;2\n2;1,234\n",
        {},
        ["line 3 has the number '1,234' and line 2 the number '1.5'"],
    ),
    "a header only": ("a,b\n", {}, ["no samples"]),
    "nothing": ("", {}, ["is empty"]),
    "a label only": ("y\n1\n", {}, ["no other column"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(table: Any, name: str) -> None:
    text, options, words = WRONG[name]
    with pytest.raises(DataError) as caught:
        table(text, **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert caught.value.where.endswith("a.csv") and caught.value.remedy


@pytest.mark.parametrize(
    "content",
    [b"a,b\n\xff\xfe,2\n", b"a,b\n1,\0\n", b'a,b\n1,"' + b"x" * 200_000, b"PK\x03\x04\0\0\0\0"],
)
def test_what_is_no_text(table: Any, content: bytes) -> None:
    with pytest.raises(DataError):
        table(content)


@given(st.binary(max_size=80) | st.text('0129.,;\t|\n"-exyE', max_size=60).map(str.encode))
@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_anything_is_a_table_or_a_data_error(table: Any, content: bytes) -> None:
    try:
        found = table(content)
    except DataError as error:
        assert error.remedy
    else:
        assert found.features.shape[1] == len(found.columns) and len(found.features) >= 1


@given(
    st.lists(
        st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3), min_size=2, max_size=20
    ),
    st.booleans(),
)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_was_written_is_read(table: Any, rows: list[list[float]], header: bool) -> None:
    text = "".join(";".join(map(repr, row)) + "\n" for row in rows)
    found = table("a;b;c\n" + text if header else text)
    np.testing.assert_array_equal(found.features, np.array(rows, np.float32))
