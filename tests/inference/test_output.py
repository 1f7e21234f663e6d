"""Predictions as files."""

from __future__ import annotations

import csv
import errno
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidl.data.hdf5 import open_file
from mpidl.errors import ConfigError, DataError
from mpidl.inference.ids import encode_key
from mpidl.inference.output import SUFFIXES, WRITERS, check_size, check_target, convert, write_csv

P = np.array([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1], [0.0, 1.0, 0.0]], np.float32)


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities as another program would read them."""
    if path.suffix == ".npz":
        with np.load(path) as found:
            return found["label"], found["probability"]
    assert path.read_text().startswith(
        "label,probability_0,probability_1,probability_2\n1,0.1,0.7,0.2\n"
    )
    rows = np.loadtxt(path, delimiter=",", skiprows=1)
    return rows[:, 0].astype(np.int64), rows[:, 1:].astype(np.float32)


def source(folder: Path) -> Path:
    path = folder / "source.h5"
    with open_file(path, "w") as file:
        file["label"], file["probability"] = P.argmax(axis=1), P
        file["done"] = np.ones(1, np.uint8)
    return path


@pytest.mark.parametrize("suffix", WRITERS)
def test_what_is_written_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p{suffix}"
    path.write_text("an older file")
    check_target(path)
    with pytest.raises(DataError, match=r"meanwhile; .* complete in source.h5"):
        convert(source(tmp_path), path, ["label", "probability"], overwrite=False)
    assert path.read_text() == "an older file"
    convert(tmp_path / "source.h5", path, ["label", "probability"], overwrite=True)
    label, probability = load(path)
    assert label.tolist() == [1, 0, 1] and label.dtype == np.int64
    np.testing.assert_allclose(probability, P, atol=1e-6)
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "source.h5"]


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_failed_write_leaves_the_older_file(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(handle: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / f"p{suffix}"
    path.write_text("an older file")
    given = source(tmp_path)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DataError, match="No space left") as caught:
        convert(given, path, ["label", "probability"], overwrite=True)
    assert caught.value.where == str(path) and "train.output" not in caught.value.remedy
    assert path.read_text() == "an older file" and sorted(tmp_path.iterdir()) == [path, given]


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=9)


@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), TEXTS), min_size=1, max_size=20))
def test_tables_hold_large_numbers_and_any_key(rows: list[tuple[int, str]]) -> None:
    numbers = np.array([number for number, _ in rows], np.int64)
    keys = encode_key(np.array([key for _, key in rows]))
    file = io.BytesIO()
    write_csv(file, {"sample": numbers, "key": keys, "p": np.zeros((len(rows), 2), np.float32)})
    text = io.StringIO(file.getvalue().decode(), newline="")
    header, *found = list(csv.reader(text))
    assert header == ["sample", "key", "p_0", "p_1"]
    assert found == [[str(number), key, "0", "0"] for number, key in rows]


def test_large_tables_are_refused(tmp_path: Path) -> None:
    check_size(tmp_path / "p.h5", 1 << 40)
    for suffix in SUFFIXES[1:]:
        check_size(tmp_path / f"p{suffix}", 1 << 20)
        with pytest.raises(ConfigError, match="too many for a file") as caught:
            check_size(tmp_path / f"p{suffix}", 1 << 30)
        assert "p.h5" in caught.value.remedy


@pytest.mark.parametrize("name", ["p.txt", "p", "none/p.csv", "."])
def test_targets_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_target(tmp_path / name)
    assert caught.value.remedy


def test_a_folder_with_the_name_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.csv").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        check_target(tmp_path / "p.csv")
