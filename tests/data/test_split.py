"""Training and test data by --split: each sample in one part, for any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpidl.data import Reader
from mpidl.data.formats.source import Roles, Source
from mpidl.data.split import Split, divide, select, split_samples
from mpidl.data.writer import WriteOptions, write_parts
from mpidl.errors import DataError


def source_of(arrays: dict[str, np.ndarray], **about: Any) -> Source:
    samples = len(next(iter(arrays.values())))
    return Source(
        samples,
        lambda low, high: {name: array[low:high] for name, array in arrays.items()},
        **about,
    )


FRACTIONS = st.sampled_from(["0.9,0.1", "0.5,0.5", "0.7,0.2,0.1", "0.34,0.33,0.33"])


@settings(max_examples=60, deadline=None)
@given(
    fractions=FRACTIONS,
    samples=st.integers(1, 300),
    classes=st.none() | st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_each_sample_is_in_one_part(
    fractions: str, samples: int, classes: int | None, seed: int
) -> None:
    labels = classes and np.random.default_rng(seed).integers(0, classes, samples)
    split = Split.parse(fractions, None, seed, classes is not None)
    parts = split_samples(samples, split, labels)
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(samples))
    for (name, numbers), fraction in zip(parts.items(), split.fractions, strict=True):
        assert (np.diff(numbers) > 0).all()
        assert abs(len(numbers) - samples * fraction) < (1 if classes is None else 2), name
        for each in np.unique(labels) if labels is not None else ():
            inside = (labels[numbers] == each).sum()
            assert abs(inside - (labels == each).sum() * fraction) < 1


def test_small_classes_are_not_all_rounded_the_same_way() -> None:
    labels = np.repeat(np.arange(10), 5)
    parts = split_samples(50, Split.parse("0.9,0.1", None, stratify=True), labels)
    assert {name: len(part) for name, part in parts.items()} == {"train": 45, "test": 5}


def test_the_seed_chooses_the_permutation() -> None:
    def test_part(seed: int) -> list[int]:
        return split_samples(1000, Split.parse("0.9,0.1", None, seed), None)["test"].tolist()

    assert test_part(3) == test_part(3) != test_part(4)
    assert test_part(0)[:5] == [3, 7, 21, 29, 66], "data sets must not change with mpidl"


@settings(max_examples=40, deadline=None)
@given(
    numbers=st.sets(st.integers(0, 199), min_size=1),
    cut=st.tuples(st.integers(0, 200), st.integers(0, 200)),
)
def test_a_selection_reads_what_it_selects(numbers: set[int], cut: tuple[int, int]) -> None:
    x = np.random.default_rng(0).normal(size=(200, 3))
    largest = 0

    def read(low: int, high: int) -> dict[str, np.ndarray]:
        nonlocal largest
        largest = max(largest, high - low)
        return {"x": x[low:high]}

    chosen = np.array(sorted(numbers))
    some = select(Source(200, read), chosen)
    start, stop = (min(end, some.samples) for end in sorted(cut))
    np.testing.assert_array_equal(some.read(start, stop)["x"], x[chosen[start:stop]])
    assert largest <= max(stop - start, 0), "no more in memory than was asked for"


def test_parts_are_data_sets_with_the_classes_of_all(tmp_path: Path, context: Any) -> None:
    """Class 9 has one sample: no part may number its classes without it."""
    y = np.array([*np.arange(100) % 4, 9])
    arrays = {"x": np.random.default_rng(0).normal(size=(101, 3)), "y": y}
    source = source_of(arrays, class_names=tuple("abcdefghij"))
    notes: list[str] = []
    parts = divide(source, Split.parse("0.8,0.2", None, 1, True), context)
    options = WriteOptions()
    manifests = write_parts(
        source, parts, tmp_path / "set", options, context, lambda count: None, note=notes.append
    )
    assert [path.name for path in sorted((tmp_path / "set").iterdir())] == ["test", "train"]
    assert "test: 1 class(es) of 'y' have no sample here: 9" in notes
    rows = []
    for name, manifest in manifests.items():
        field = manifest.fields["y"]
        assert field.classes == 10 and field.class_names == tuple("abcdefghij")
        with Reader(tmp_path / "set" / name) as reader:
            found = reader.read([(0, manifest.samples)])
        np.testing.assert_array_equal(found["x"], arrays["x"][parts[name].numbers])
        np.testing.assert_array_equal(found["y"], y[parts[name].numbers])
        statistics = manifest.fields["x"].statistics
        assert statistics is not None and statistics.mean == pytest.approx(found["x"].mean())
        rows.append(manifest.samples)
    assert rows == [81, 20]


def test_a_bad_sample_is_named_by_its_number_in_the_source(tmp_path: Path, context: Any) -> None:
    x = np.zeros((50, 2))
    x[37, 1] = np.nan
    source = source_of({"x": x, "y": np.arange(50) % 2})
    parts = divide(source, Split.parse("0.5,0.5", "a,b"), context)
    with pytest.raises(DataError, match="sample 37 of the source"):
        write_parts(source, parts, tmp_path / "set", WriteOptions(2), context, lambda count: None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fractions", "names", "words"),
    [
        ("0.9", None, "two or more"),
        ("0.9,x", None, "two or more"),
        ("1.5,-0.5", None, "two or more"),
        ("nan,0.5", None, "two or more"),
        ("0.8,0.1", None, "add up to 0.9"),
        ("0.25,0.25,0.25,0.25", None, "4 parts cannot be named"),
        ("0.5,0.5", "a,a", "cannot be named a, a"),
        ("0.5,0.5", "a,../b", "cannot be named"),
        ("0.5,0.5", "..,b", "cannot be named"),
        ("0.5,0.5", "a", "cannot be named"),
    ],
)
def test_impossible_splits(fractions: str, names: str | None, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        Split.parse(fractions, names)
    assert caught.value.where.startswith("--split") and caught.value.remedy


def test_an_empty_part_is_refused(context: Any) -> None:
    source = source_of({"x": np.zeros((3, 2)), "y": np.arange(3)})
    with pytest.raises(DataError, match="'test' of 3 samples would be empty") as caught:
        divide(source, Split.parse("0.9,0.1", None), context)
    assert "--split" in caught.value.where


@pytest.mark.parametrize(
    ("arrays", "roles"),
    [
        ({"x": np.zeros((9, 2))}, Roles()),
        ({"x": np.zeros((9, 2)), "y": np.linspace(0, 1, 9)}, Roles()),
        ({"x": np.zeros((9, 2)), "y": np.zeros((9, 4), int)}, Roles()),
        ({"a": np.arange(9), "b": np.arange(9)}, Roles(labels=("a", "b"))),
    ],
)
def test_what_cannot_be_stratified(arrays: Any, roles: Roles, context: Any) -> None:
    with pytest.raises(DataError, match="a class for each sample") as caught:
        divide(source_of(arrays, roles=roles), Split.parse("0.5,0.5", None, 0, True), context)
    assert "--stratify" in caught.value.where
