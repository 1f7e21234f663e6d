"""From [data] to streams: several data sets, weights, classes; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidl.data import Loader
from mpidl.data.drawing import Drawing, make_sampler, open_data
from mpidl.data.formats.source import Source
from mpidl.data.joined import JoinedReader
from mpidl.data.manifest import load_manifest
from mpidl.data.mixture import MixedSampler
from mpidl.data.sampler import LaneSampler
from mpidl.data.writer import WriteOptions, write_dataset
from mpidl.errors import ConfigError, DataError


@pytest.fixture
def write(tmp_path: Path, context: Any) -> Any:
    """write(name, x, label) -> its folder."""

    def make(name: str, x: np.ndarray, label: np.ndarray) -> str:
        arrays = {"x": x, "label": label}
        source = Source(len(x), lambda a, b: {key: array[a:b] for key, array in arrays.items()})
        write_dataset(source, tmp_path / name, WriteOptions(3), context, lambda count: None)
        return str(tmp_path / name)

    return make


def numbered(low: int, high: int, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Samples that hold their number, with a rare class 0."""
    number = np.arange(low, high)
    label = np.where(number % 10 == 0, 0, 1 + number % (classes - 1))
    return np.repeat(number[:, None], 6, axis=1).astype(np.float32), label


@pytest.fixture
def sets(write: Any) -> list[str]:
    return [write("a", *numbered(0, 150)), write("b", *numbered(150, 210))]


def drawn(folders: list[str], drawing: Drawing, epoch: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The numbers and labels of all samples of an epoch, through reader and loader."""
    reader = open_data(folders, None)
    loader = Loader(reader, make_sampler(reader, drawing, label="label"))
    batches = [
        (b.arrays["x"][:, 0].astype(int), b.arrays["label"].copy()) for b in loader.epoch(epoch)
    ]
    loader.close()
    reader.close()
    numbers, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    wanted = np.where(numbers % 10 == 0, 0, 1 + numbers % 3)
    np.testing.assert_array_equal(labels, wanted, "fields of a sample stay together")
    return numbers, labels


@pytest.mark.parametrize("window_bytes", [1 << 20, 2000])
def test_several_sets_without_weights_are_one(sets: list[str], window_bytes: int) -> None:
    numbers, _ = drawn(sets, Drawing(16, window_bytes=window_bytes))
    np.testing.assert_array_equal(np.sort(numbers), np.arange(210))


@pytest.mark.parametrize("window_bytes", [1 << 20, 2000])
def test_weights_are_shares_of_the_epoch(sets: list[str], window_bytes: int) -> None:
    drawing = Drawing(16, weights=(0.3, 0.7), window_bytes=window_bytes)
    for epoch in range(2):
        numbers, _ = drawn(sets, drawing, epoch)
        assert len(numbers) == 210 and (numbers < 150).sum() == 63
        assert set(np.bincount(numbers)[150:].tolist()) <= {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("balance", "wanted"), [("classes", [75, 75, 75, 75]), ("sqrt", [37, 89, 86, 88])]
)
def test_classes_are_balanced(sets: list[str], balance: str, wanted: list[int]) -> None:
    _, labels = drawn(sets, Drawing(20, balance=balance, epoch_samples=300))
    sizes = np.bincount(numbered(0, 210)[1])
    if balance == "sqrt":
        exact = 300 * np.sqrt(sizes) / np.sqrt(sizes).sum()
        assert (np.abs(np.bincount(labels) - exact) < 1).all()
    else:
        np.testing.assert_array_equal(np.bincount(labels), wanted)


def test_weights_and_balance_together(sets: list[str]) -> None:
    drawing = Drawing(10, weights=(1, 3), balance="classes", epoch_samples=160)
    numbers, labels = drawn(sets, drawing)
    np.testing.assert_array_equal(np.bincount(labels), [40] * 4)
    np.testing.assert_array_equal(np.bincount(labels[numbers < 150]), [10] * 4)


def test_epochs_of_some_samples_go_through_all_of_them(sets: list[str]) -> None:
    drawing = Drawing(10, epoch_samples=70)
    numbers = np.concatenate([drawn(sets, drawing, epoch)[0] for epoch in range(3)])
    np.testing.assert_array_equal(np.sort(numbers), np.arange(210))


def test_plain_settings_take_the_lanes(sets: list[str]) -> None:
    reader = open_data(sets, None)
    assert type(make_sampler(reader, Drawing(10))) is LaneSampler
    assert type(make_sampler(reader, Drawing(10, epoch_samples=70))) is MixedSampler


def test_statistics_are_those_of_all_samples(sets: list[str], write: Any) -> None:
    reader = open_data(sets, None)
    assert isinstance(reader, JoinedReader)
    together = load_manifest(write("both", *numbered(0, 210))).fields["x"].statistics
    joined = reader.manifest.fields["x"].statistics
    assert joined is not None and together is not None and joined.is_intact
    for name in ("mean", "std", "channel_means", "channel_stds"):
        np.testing.assert_allclose(getattr(joined, name), getattr(together, name), rtol=1e-12)


def test_a_bad_value_names_its_own_file(sets: list[str]) -> None:
    reader = open_data(sets, None)
    assert reader.locate(149) == (f"{sets[0]}/shard-00002.h5", 49)
    assert reader.locate(150) == (f"{sets[1]}/shard-00000.h5", 0)


@pytest.mark.parametrize(
    ("x", "label", "words"),
    [
        (np.zeros((9, 5), np.float32), np.arange(9) % 4, r"'x'.*shape \(5,\), but \(6,\)"),
        (np.zeros((9, 6), np.float64), np.arange(9) % 4, "'x'.*dtype float64, but float32"),
        (np.zeros((9, 6), np.float32), np.arange(9) % 3, "'label'.*classes 3, but 4"),
    ],
)
def test_other_fields_are_refused(write: Any, x: np.ndarray, label: np.ndarray, words: str) -> None:
    folders = [write("a", *numbered(0, 60)), write("b", x, label)]
    with pytest.raises(DataError, match=words) as caught:
        open_data(folders, None)
    assert caught.value.where == f"{folders[1]}/manifest.json" and caught.value.remedy


def test_a_missing_field_is_refused(write: Any, tmp_path: Path, context: Any) -> None:
    source = Source(9, lambda a, b: {"x": np.zeros((b - a, 6), np.float32)})
    write_dataset(source, tmp_path / "b", WriteOptions(2), context, lambda count: None)
    with pytest.raises(DataError, match=r"'label'.*no such field"):
        open_data([write("a", *numbered(0, 60)), str(tmp_path / "b")], None)


def test_a_class_without_a_sample_is_refused(write: Any) -> None:
    x, label = numbered(0, 60)
    label[label == 2] = 1
    folders = [write("a", *numbered(0, 60)), write("b", x, label)]
    reader = open_data(folders, None)
    make_sampler(reader, Drawing(8, balance="classes"), label="label")
    drawing = Drawing(8, weights=(1, 1), balance="classes")
    with pytest.raises(DataError, match="class 2 of 'label' has no sample") as caught:
        make_sampler(reader, drawing, label="label")
    assert caught.value.where == folders[1]


@pytest.mark.parametrize(
    ("drawing", "words"),
    [
        (Drawing(8, weights=(1, 1e-9)), "drawn 0 times in an epoch of 210"),
        (Drawing(8, epoch_samples=7), "an epoch of 7 samples is less than one batch of 8"),
        (Drawing(8, balance="sqrt"), "needs a label that is one class"),
    ],
)
def test_what_cannot_be_drawn(sets: list[str], drawing: Drawing, words: str) -> None:
    with pytest.raises((ConfigError, DataError), match=words) as caught:
        make_sampler(open_data(sets, None), drawing)
    assert caught.value.remedy
