"""Classes, statistics, and notes about data that cannot be trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidl.data.formats.source import Source
from mpidl.data.manifest import load_manifest
from mpidl.data.writer import WriteOptions, write_dataset
from mpidl.errors import DataError


def shard(tmp_path: Path, context: Any, y: np.ndarray, **about: Any) -> tuple[Any, list[str]]:
    """The field "y" of a data set with these labels, and the notes."""
    x = np.random.default_rng(0).standard_normal((len(y), 2)).astype(np.float32)
    notes: list[str] = []
    source = Source(len(y), lambda low, high: {"x": x[low:high], "y": y[low:high]}, **about)
    options = WriteOptions(2, overwrite=True)
    manifest = write_dataset(
        source, tmp_path / "set", options, context, lambda count: None, note=notes.append
    )
    return manifest.fields["y"], notes


def test_labels_that_are_classes(tmp_path: Path, context: Any) -> None:
    assert shard(tmp_path, context, np.arange(100) % 10)[1] == []
    field, notes = shard(tmp_path, context, np.array([0, 7] * 20))
    assert field.classes == 8 and notes == [
        "6 of the 8 classes in 'y' have no sample: 1, 2, 3, 4, 5, 6"
    ]
    field, notes = shard(tmp_path, context, np.array([0, 1] * 20), class_names=("a", "b", "c"))
    assert field.classes == 3 and "1 of the 3 classes" in notes[0]
    field, notes = shard(tmp_path, context, np.arange(600))
    assert field.classes == 600 and "600 different values in 600 samples" in notes[0]


@pytest.mark.parametrize(
    "values", [[0, 1_000_000_000], [1990, 2024, 2001], [2**40], [10_115, 80_331], [0, 1 << 20]]
)
def test_numbers_that_cannot_be_classes(tmp_path: Path, context: Any, values: list[int]) -> None:
    with pytest.raises(DataError, match=f"{max(values) + 1:,}, of which .* no sample") as caught:
        shard(tmp_path, context, np.array(values * 20))
    assert "numpy.unique" in caught.value.remedy and not (tmp_path / "set").exists()
    assert not list(tmp_path.glob("*.partial"))


def test_many_classes_are_not_counted(tmp_path: Path, context: Any) -> None:
    field, notes = shard(tmp_path, context, np.arange(30_000) * 2)
    assert (
        field.classes == 59_999
        and len(notes) == 1
        and "at least 30,000 different values in 30,000" in notes[0]
    )
    with pytest.raises(DataError, match="as classes numbered from 0 they would be 1,200,001"):
        shard(tmp_path, context, np.arange(60_001) * 20)


def test_tokens_may_leave_out_words(tmp_path: Path, context: Any) -> None:
    field, notes = shard(tmp_path, context, np.full((30, 4), 50_256))
    assert field.classes == 50_257 and notes == []


def test_real_numbers_are_no_classes(tmp_path: Path, context: Any) -> None:
    field, notes = shard(tmp_path, context, np.linspace(0, 1, 40))
    assert field.role == "label" and field.classes is None and "real numbers" in notes[0]


def test_a_data_set_without_label_says_what_could_be_one(tmp_path: Path, context: Any) -> None:
    arrays = {"x": np.eye(6, 3, dtype=np.float32), "category": np.arange(6), "kind": np.arange(6)}
    notes: list[str] = []
    source = Source(6, lambda low, high: {name: array[low:high] for name, array in arrays.items()})
    write_dataset(
        source, tmp_path / "set", WriteOptions(2), context, lambda count: None, note=notes.append
    )
    assert len(notes) == 1 and "--label NAME, one of category, kind" in notes[0]
    with pytest.raises(DataError, match="--label NAME"):
        load_manifest(tmp_path / "set").field_with_role("label", None, "set")


@pytest.mark.parametrize("value", [7.0, 0.1, -1e6 / 3])
def test_a_constant_feature_is_said(tmp_path: Path, context: Any, value: float) -> None:
    """Sums of squares round: the deviation of 0.1 is not quite 0, and dividing by it is noise."""
    notes: list[str] = []
    source = Source(
        600, lambda low, high: {"x": np.full((high - low, 3), value), "y": np.arange(low, high) % 2}
    )
    write_dataset(
        source, tmp_path / "set", WriteOptions(2), context, lambda count: None, note=notes.append
    )
    assert notes == [f"the feature 'x' is {value:g} in all samples: nothing can be learned from it"]
    statistics = load_manifest(tmp_path / "set").fields["x"].statistics
    assert statistics is not None and (statistics.mean, statistics.std) == (value, 0.0)


def test_values_whose_deviation_is_beyond_float64(tmp_path: Path, context: Any) -> None:
    """A manifest with such statistics could not be read again."""
    x = np.array([[1e300], [-1e300]] * 10)
    source = Source(20, lambda low, high: {"x": x[low:high]})
    with pytest.raises(DataError, match="'x' is beyond float64") as caught:
        write_dataset(source, tmp_path / "set", WriteOptions(2), context, lambda count: None)
    assert "scale" in caught.value.remedy and not list(tmp_path.iterdir())
