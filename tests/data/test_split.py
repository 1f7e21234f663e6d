"""Training and test data from one source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidl.cli.main import main
from mpidl.data import Reader
from mpidl.data.formats.source import Source
from mpidl.data.manifest import load_manifest
from mpidl.data.split import by_class, counts, divide, parse_split, read_classes, subset
from mpidl.data.writer import WriteOptions, write_parts
from mpidl.errors import ConfigError, DataError


@given(
    st.integers(0, 10_000),
    st.lists(st.integers(1, 50), min_size=2, max_size=5),
)
def test_counts_are_the_nearest_whole_numbers(samples: int, weights: list[int]) -> None:
    fractions = [weight / sum(weights) for weight in weights]
    found = counts(samples, fractions)
    assert sum(found) == samples
    for count, fraction in zip(found, fractions, strict=True):
        assert abs(count - samples * fraction) < 1
    assert counts(100, [0.29, 0.71]) == [29, 71]


@given(st.lists(st.integers(2, 40), min_size=1, max_size=5), st.integers(0, 5))
def test_every_sample_is_in_one_part_and_each_class_in_proportion(
    sizes: list[int], seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    parts = divide(by_class(labels), {"a": 0.5, "b": 0.5}, seed)
    together = np.sort(np.concatenate(list(parts.values())))
    np.testing.assert_array_equal(together, np.arange(len(labels)))
    for part in parts.values():
        assert (np.abs(np.bincount(labels[part], minlength=len(sizes)) * 2 - sizes) <= 1).all()
    again = divide(by_class(labels), {"a": 0.5, "b": 0.5}, seed)
    assert all((parts[name] == again[name]).all() for name in parts)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=20),
    st.sampled_from([(0.9, 0.1), (0.5, 0.5), (0.7, 0.2, 0.1), (0.34, 0.33, 0.33)]),
)
def test_rounding_is_fair_over_classes(sizes: list[int], fractions: tuple[float, ...]) -> None:
    """Each class is rounded down or up, and so is the sum, nearly."""
    owed = [0.0] * len(fractions)
    rows = [counts(size, fractions, owed) for size in sizes]
    for size, row in zip(sizes, rows, strict=True):
        assert sum(row) == size
        assert all(abs(n - size * f) < 1 for n, f in zip(row, fractions, strict=True))
    for part, fraction in enumerate(fractions):
        assert abs(sum(row[part] for row in rows) - sum(sizes) * fraction) < len(fractions)


def test_small_classes_are_not_all_rounded_in_favor_of_one_part() -> None:
    parts = divide(by_class(np.repeat(np.arange(10), 5)), {"train": 0.9, "test": 0.1}, 0)
    assert {name: len(part) for name, part in parts.items()} == {"train": 45, "test": 5}


@pytest.mark.parametrize("limit", [1, 100, 1 << 20])
def test_classes_are_read_in_pieces(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpidl.data.split.READ_BYTES", limit)
    labels, largest = np.arange(30) % 7, 0

    def read(low: int, high: int) -> dict[str, np.ndarray]:
        nonlocal largest
        largest = max(largest, high - low)
        return {"x": np.zeros((high - low, 4), np.float32), "label": labels[low:high, None]}

    source = Source(30, read)
    assert read_classes(source, 3, 29).tolist() == labels[3:29].tolist()
    assert read_classes(source, 5, 5).tolist() == [] and largest <= max(1, limit // 24)


def test_a_bad_sample_is_named_by_its_number_in_the_source(tmp_path: Path, context: Any) -> None:
    x = np.zeros((50, 2))
    x[37, 1] = np.nan
    source = Source(50, lambda low, high: {"x": x[low:high]})
    parts = divide([np.arange(50)], {"a": 0.5, "b": 0.5}, 0)
    with pytest.raises(DataError, match="sample 37 of the source"):
        write_parts(
            {name: subset(source, numbers) for name, numbers in parts.items()},
            tmp_path / "set",
            WriteOptions(2),
            context,
            lambda count: None,
        )
    assert not list(tmp_path.iterdir())


@given(st.sets(st.integers(0, 400), min_size=1), st.data())
def test_a_subset_reads_its_samples(chosen: set[int], data: Any) -> None:
    numbers = np.array(sorted(chosen))
    start = data.draw(st.integers(0, len(numbers)))
    stop = data.draw(st.integers(start, len(numbers)))
    largest = 0

    def read(low: int, high: int) -> dict[str, np.ndarray]:
        nonlocal largest
        largest = max(largest, high - low)
        return {"x": np.arange(low, high)}

    found = subset(Source(401, read), numbers).read(start, stop)["x"]
    np.testing.assert_array_equal(found, numbers[start:stop])
    assert largest <= stop - start, "no more in memory than was asked for"


@pytest.mark.parametrize("text", ["1", "0.5,0.6", "a,b", "1.5,-0.5", "nan,1", "0,1", ""])
def test_fractions_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--split"):
        parse_split(text, "train,test")


@pytest.mark.parametrize("names", ["a", "a,a", "a,b,c", "a,../b", "a,"])
def test_names_that_are_none(names: str) -> None:
    with pytest.raises(ConfigError, match="--split-names"):
        parse_split("0.5,0.5", names)


def test_an_empty_part_is_refused() -> None:
    with pytest.raises(DataError, match=r"'b' is 0.1 of 4 samples") as caught:
        divide([np.arange(4)], {"a": 0.9, "b": 0.1}, 0)
    assert "--split" in caught.value.remedy


def test_the_command_splits_and_both_parts_know_all_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    y = np.arange(40) % 4
    y[0] = 4  # one sample alone: only one part has it
    x = np.arange(80, dtype=np.float32).reshape(40, 2)
    np.savez(tmp_path / "a.npz", x=x, kind=y, weight=x[:, :1])
    out = tmp_path / "set"
    command = ["shard", str(tmp_path / "a.npz"), "--out", str(out), "--label", "kind"]
    command += ["--feature", "x", "--split", "0.75,0.25", "--stratify"]
    assert main(command) == 0
    assert "1 class(es) of 'kind' have no sample: 4" in capsys.readouterr().err
    manifests = {name: load_manifest(out / name) for name in ("train", "test")}
    assert [m.fields["kind"].classes for m in manifests.values()] == [5, 5]
    for manifest in manifests.values():
        assert {name: field.role for name, field in manifest.fields.items()} == {
            "x": "feature",
            "kind": "label",
            "weight": "other",
        }
    rows = []
    for name, manifest in manifests.items():
        with Reader(out / name) as reader:
            arrays = reader.read([(0, len(reader))])
        statistics = manifest.fields["x"].statistics
        assert statistics is not None
        np.testing.assert_allclose(statistics.channel_means, arrays["x"].mean(axis=0), 1e-6)
        rows += arrays["x"][:, 0].tolist()
    assert sorted(rows) == x[:, 0].tolist() and not list(tmp_path.glob("*.partial"))


def test_several_labels_and_roles_that_clash(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((12, 2)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=x, u=x, v=x + 1)
    shard = ["shard", str(tmp_path / "a.npz"), "--out", str(tmp_path / "set")]
    assert main([*shard, "--label", "u", "--label", "v"]) == 0
    roles = {name: f.role for name, f in load_manifest(tmp_path / "set").fields.items()}
    assert roles == {"x": "feature", "u": "label", "v": "label"}
    assert main([*shard, "--overwrite", "--label", "u", "--feature", "u"]) == 1
    assert main([*shard, "--overwrite", "--feature", "w"]) == 1
    assert main([*shard, "--overwrite", "--stratify"]) == 1
