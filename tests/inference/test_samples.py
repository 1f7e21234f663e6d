"""Samples for a model: checked, and told from others; how they are cut."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mpidl.backend.numpy_ops import NumpyOps
from mpidl.comm.context import init
from mpidl.data.formats.source import Source, source_from_arrays
from mpidl.data.hdf5 import open_file
from mpidl.data.split import subset
from mpidl.errors import DataError
from mpidl.inference.ids import encode_key, find_key
from mpidl.inference.raw import RawSamples
from mpidl.inference.samples import identify, open_samples
from mpidl.inference.sharded import BATCH, BATCH_BYTES, batch_size, chunk_size
from mpidl.nn import Dense, Model
from mpidl.task import TASKS, FieldSpec, InputSpec, Task
from mpidl.task.spec import TargetSpec

VECTORS = InputSpec("classification", (FieldSpec("x", (3,)),), TargetSpec((FieldSpec("y", ()),), 4))
TEXT = InputSpec("language_model", (FieldSpec("tokens", (3,)),), TargetSpec((), 11))


def make_task(spec: InputSpec, **options: Any) -> Task:
    kind = TASKS[spec.task]
    return kind(kind.Options(**options), spec)


def raw(name: str, array: Any, spec: InputSpec, where: str = "a.npz") -> RawSamples:
    source: Source = source_from_arrays({name: array}, where)
    return RawSamples(source, make_task(spec), where)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_none(value: float) -> None:
    array = np.zeros((20, 3), np.float32)
    array[13, 1] = value
    samples = raw("other name", array, VECTORS)
    assert samples.read(0, 10)["x"].shape == (10, 3) and len(samples) == 20
    with pytest.raises(DataError, match=r"sample 13 has 'x' = .*must be finite") as caught:
        samples.read(10, 20)
    assert caught.value.where == "a.npz"


@pytest.mark.parametrize("token", [-1, 11, 1 << 40])
def test_tokens_beyond_the_vocabulary(token: int) -> None:
    """The model would read beyond the end of its embedding."""
    tokens = np.ones((9, 3), np.int64)
    tokens[4, 2] = token
    with pytest.raises(DataError, match=r"sample 4 has 'tokens' = .*must lie in \[0, 11\)"):
        raw("tokens", tokens, TEXT).read(2, 9)


def test_no_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((0, 3), np.float32))
    task = make_task(VECTORS)
    with pytest.raises(DataError, match="has no samples") as caught:
        open_samples([tmp_path / "a.npz"], task, init())
    assert "a.npz" in caught.value.where


X = np.arange(60, dtype=np.float32).reshape(20, 3)
Y = np.arange(20) % 4
VALUES = InputSpec(
    "regression", (FieldSpec("x", (3,)),), TargetSpec((FieldSpec("y", ()),), shape=())
)


def files(folder: Path, how: str) -> tuple[list[Path], dict[str, Any]]:
    """Features and targets in real files, and how they are to be opened."""
    if how == "npy":
        np.save(folder / "x.npy", X)
        np.save(folder / "y.npy", Y)
        return [folder / "x.npy", folder / "y.npy"], {}
    if how == "npz":  # by the names of the model, beside another field that could be the label
        np.savez(folder / "a.npz", x=X, y=Y, label=Y[::-1])
        return [folder / "a.npz"], {}
    path = folder / "a.h5"
    with open_file(path, "w") as file:
        file["some x"], file["truth"], file["label"] = X, Y[:, None], Y[::-1]
    return [path], {"label": ["truth"]}


@pytest.mark.parametrize("how", ["npy", "npz", "h5 and --label"])
@pytest.mark.parametrize("spec", [VECTORS, VALUES])
def test_targets_of_raw_files(tmp_path: Path, how: str, spec: InputSpec) -> None:
    paths, options = files(tmp_path, how)
    task = make_task(spec)
    samples = open_samples(paths, task, init(), scored=True, options=options)
    arrays = samples.read(5, 9)
    np.testing.assert_array_equal(arrays["x"], X[5:9])
    np.testing.assert_array_equal(arrays["y"], Y[5:9])
    np.testing.assert_allclose(task.targets(arrays), Y[5:9])
    unscored = open_samples(paths, task, init(), options=options)
    assert list(unscored.read(5, 9)) == ["x"]
    samples.close()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "metrics need the target 'y', found 'x'"),
        ({"label": Y, "target": Y}, "metrics need the target 'y'"),
        ({"y": Y.astype(np.float32)}, "the model knows 4 classes in 'y'.*float32"),
        ({"y": np.stack([Y, Y], axis=1)}, "a classifier learns one class"),
        ({"y": Y.astype("S1")}, r"'y' holds \|S1, but metrics compare numbers"),
        ({"y": Y + 1}, r"sample 3 has 'y' = 4, but values must lie in \[0, 4\)"),
        ({"y": Y - 1}, r"sample 0 has 'y' = -1"),
    ],
)
def test_targets_that_are_none(fields: dict[str, Any], words: str) -> None:
    source = source_from_arrays({"x": X} | fields, "a.npz")
    with pytest.raises(DataError, match=words) as caught:
        RawSamples(source, make_task(VECTORS), "a.npz", scored=True).read(0, 20)
    assert caught.value.where == "a.npz" and caught.value.remedy


def test_real_targets_are_finite_and_labels_0_or_1() -> None:
    y = np.zeros((20, 2), np.float32)
    y[7, 1] = np.nan
    spec = InputSpec("regression", VALUES.features, TargetSpec((FieldSpec("y", (2,)),), shape=(2,)))
    several = InputSpec("multilabel", spec.features, spec.target)
    source = source_from_arrays({"x": X, "y": y}, "a.npz")
    with pytest.raises(DataError, match=r"sample 7 has 'y' = nan, but values must be finite"):
        RawSamples(source, make_task(spec), "a.npz", scored=True).read(0, 20)
    y[7, 1] = 0.5
    with pytest.raises(DataError, match=r"sample 7 has 'y' = 0.5, but values must be 0 or 1"):
        RawSamples(source, make_task(several), "a.npz", scored=True).read(0, 20)


def test_masks_may_hold_the_label_that_is_ignored() -> None:
    masks = np.zeros((20, 2, 2), np.uint8)
    masks[3, 1, 1] = 255
    spec = InputSpec(
        "segmentation", (FieldSpec("x", (3,)),), TargetSpec((FieldSpec("m", (2, 2)),), 3)
    )
    source = source_from_arrays({"x": X, "m": masks}, "a.npz")
    ignoring = make_task(spec, ignore=255)
    arrays = RawSamples(source, ignoring, "a.npz", scored=True).read(0, 20)
    assert ignoring.targets(arrays)[3, 1, 1] == -1
    with pytest.raises(DataError, match=r"sample 3 has 'm' = 255"):
        RawSamples(source, make_task(spec), "a.npz", scored=True).read(0, 20)


def test_words_have_the_numbers_of_the_model() -> None:
    words = ("ant", "bee", "cat", "dog")
    target = TargetSpec((FieldSpec("y", ()),), 4, words)
    task = make_task(InputSpec("classification", VECTORS.features, target))
    source = source_from_arrays({"x": X, "y": Y % 2}, "a.csv")
    known = dataclasses.replace(source, class_names=("bee", "dog"))
    arrays = RawSamples(known, task, "a.csv", scored=True).read(0, 20)
    np.testing.assert_array_equal(task.targets(arrays), np.where(Y % 2, 3, 1))
    unknown = dataclasses.replace(source, class_names=("bee", "eel"))
    with pytest.raises(DataError, match="the class 'eel' is none of the model: ant, bee, cat, dog"):
        RawSamples(unknown, task, "a.csv", scored=True)


SEVERAL = st.integers(1, 9).map(lambda n: (n,))


@given(
    hnp.arrays(st.sampled_from(["<i4", "<u8", ">i8"]), SEVERAL, elements=st.integers(0, 99))
    | hnp.arrays("<U3", SEVERAL, elements=st.text("ab,ü€😀", max_size=3))
    | hnp.arrays("|S3", SEVERAL, elements=st.sampled_from([b"", b"a", b"abc"]))
)
def test_keys(values: Any) -> None:
    assert find_key({"x": ((3,), "<f4"), "id": ((), values.dtype.str)}, ["x"]) == "id"
    found = encode_key(values)
    texts = values.dtype.kind in "SU"
    read = [v.decode() for v in found] if texts else found.tolist()
    assert read == [v.decode() if isinstance(v, bytes) else v for v in values.tolist()]
    assert found.dtype == encode_key(values[:1]).dtype, "the same for any part"


def test_what_is_no_key() -> None:
    kinds = {"id": ((2,), "<i8"), "key": ((), "<f4"), "ids": ((), "|O"), "other": ((), "<i8")}
    assert find_key(kinds, ()) == ""
    assert find_key({"id": ((), "<i8")}, ["id"]) == ""


def test_numbers_and_keys_of_samples(tmp_path: Path) -> None:
    numbers, names = np.array([3, 7, 8]), [f"scan{k}" for k in range(20)]
    part = dataclasses.replace(subset(source_from_arrays({"x": X}, "a"), numbers), keys=names)
    samples = RawSamples(part, make_task(VECTORS), "a")
    ids = samples.ids(1, samples.read(1, 3))
    assert ids["sample"].tolist() == [7, 8] and ids["key"].tolist() == [b"scan7", b"scan8"]
    np.savez(tmp_path / "a.npz", x=X, y=Y, id=np.arange(100, 120))
    for scored in (False, True):
        samples = open_samples([tmp_path / "a.npz"], make_task(VECTORS), init(), scored=scored)
        ids = samples.ids(4, samples.read(4, 6))
        assert ids["sample"].tolist() == [4, 5] and ids["key"].tolist() == [104, 105]


def test_data_are_told_from_others(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(b"123")
    before = identify([path], {})
    assert identify([path], {}) == before != identify([path], {"label": ["y"]})
    os.utime(path, (1, 1))
    assert identify([path], {}) != before
    folder = tmp_path / "folder.zarr" / "c"
    folder.mkdir(parents=True)
    (folder / "0").write_bytes(b"1")
    before = identify([tmp_path / "folder.zarr"], {})
    (folder / "0").write_bytes(b"22")
    assert identify([tmp_path / "folder.zarr"], {}) != before
    dataset = tmp_path / "set"
    dataset.mkdir()
    (dataset / "manifest.json").write_text("{}")
    before = identify([dataset], {})
    os.utime(dataset / "manifest.json", (1, 1))
    dataset.rename(tmp_path / "moved")
    assert identify([tmp_path / "moved"], {}) == before, "the digest of its content, not its place"
    with pytest.raises(DataError):
        identify([tmp_path / "none"], {})


@given(
    inputs=st.integers(1, 300),
    units=st.integers(1, 3000),
    samples=st.integers(1, 10**9),
)
def test_passes_and_chunks_fit_memory(inputs: int, units: int, samples: int) -> None:
    model = Model([Dense(units)], (inputs,), NumpyOps())
    predictor: Any = SimpleNamespace(model=model, shape=(units,))
    batch, chunk = batch_size(predictor), chunk_size(predictor, samples)
    assert batch == BATCH or 2 * batch * 4 * (inputs + 2 * units) > BATCH_BYTES
    assert batch == 1 or batch * 4 * (inputs + 2 * units) <= BATCH_BYTES
    assert chunk % batch == 0 and 1 <= chunk // batch <= 16
    assert chunk == batch or chunk * 4 * (inputs + units) <= 16 << 20
    assert chunk // batch <= 4 or samples // chunk >= 64, "enough chunks for uneven ranks"
