"""What data hold, against NumPy on all of them."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from mpidl.data import look
from mpidl.data.hdf5 import h5py
from mpidl.data.look import Part, Values, choose, scan
from mpidl.data.manifest import Field
from mpidl.data.views import open_parts
from mpidl.errors import MpidlError


@given(
    arrays(
        st.sampled_from([np.float32, np.float64, np.int16, np.uint8]),
        array_shapes(min_dims=1, max_dims=3, max_side=7),
    ),
    st.lists(st.integers(0, 7), max_size=3),
)
def test_values_are_those_of_all_samples(array: np.ndarray, cuts: list[int]) -> None:
    """However they are divided into blocks."""
    found = Values(classes={})
    edges = [0, *sorted(min(cut, len(array)) for cut in cuts), len(array)]
    for low, high in pairwise(edges):
        found.add(array[low:high])
    exact = array.astype(np.longdouble)
    finite = exact[np.isfinite(exact)]
    assert found.nan == np.isnan(exact).sum() and found.infinite == np.isinf(exact).sum()
    summary = found.summary()
    json.dumps(summary, allow_nan=False)
    if not finite.size:
        assert summary["min"] is summary["mean"] is summary["max"] is None
        return
    assert (summary["min"], summary["max"]) == (finite.min(), finite.max())
    scale = float(np.abs(finite).max())
    if scale < 1e150:
        least = 1e-13 * scale + 1e-150  # squares of smaller ones are 0
        assert summary["mean"] == pytest.approx(float(finite.mean()), abs=1e-13 * scale)
        assert summary["std"] == pytest.approx(float(finite.std()), rel=1e-9, abs=least)
    if array.dtype.kind in "iu":
        values, counts = np.unique(array, return_counts=True)
        assert found.classes == dict(zip(values.tolist(), counts.tolist(), strict=True))


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_the_samples_that_are_looked_at(samples: int, wanted: int) -> None:
    pieces = choose(samples, wanted)
    flat = [row for start, stop in pieces for row in range(start, stop)]
    assert flat == sorted(set(flat)) and all(0 <= row < samples for row in flat)
    if not 0 < wanted < samples:
        assert len(flat) == samples
    else:
        assert wanted / 2 < len(flat) <= wanted
        gaps = np.diff([0, *flat, samples])
        assert gaps.max() <= 2 * -(-samples // min(wanted, look.BLOCKS)), "evenly spaced"


def test_no_more_is_read_than_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "READ_BYTES", 4000)
    monkeypatch.setattr(look, "SCAN_BYTES", 40_000)
    reads: list[int] = []

    def read(pieces: Any) -> dict[str, np.ndarray]:
        reads.append(sum(stop - start for start, stop in pieces))
        return {"x": np.zeros((reads[-1], 100), np.float32)}

    part = Part(100_000, {"x": Field("float32", (100,), "feature")}, read)
    _, scanned = scan(part, 5000, lambda text: None)
    assert sum(reads) == scanned and 50 < scanned <= 100 and max(reads) <= 10
    reads.clear()
    part = Part(300, part.fields, read)
    assert scan(part, 0, lambda text: None)[1] == 300 == sum(reads)  # all, if all are asked for


def test_labels_beyond_counting() -> None:
    found = Values(classes={})
    found.add(np.arange(look.MOST_CLASSES + 1))
    assert found.classes is None and found.count == look.MOST_CLASSES + 1


def test_a_read_that_fails_is_noted_with_what_was_seen() -> None:
    def read(pieces: Any) -> dict[str, np.ndarray]:
        raise OSError(5, "Input/output error")

    notes: list[str] = []
    fields, scanned = scan(Part(9, {"x": Field("float32", (), "feature")}, read), 0, notes.append)
    assert scanned == 0 and fields["x"]["mean"] is None and "Input/output error" in notes[0]


def test_files_of_any_kind(tmp_path: Path, make_dataset: Any) -> None:
    folder, x = make_dataset(50, 3)
    (part,) = open_parts([folder], print)
    fields, scanned = scan(part, 0, print)
    assert scanned == 50 and fields["x"]["mean"] == pytest.approx(x["x"].mean())
    assert list(part.files.values()) == [16, 17, 17]
    assert {key: entry["count"] for key, entry in fields["label"]["classes"].items()} == {
        str(value): 10 for value in range(5)
    }
    np.savez(tmp_path / "a.npz", x=x["x"], y=x["label"])
    (part,) = open_parts([tmp_path / "a.npz"], print)
    assert scan(part, 0, print)[0]["x"]["max"] == 49
    with h5py.File(tmp_path / "without suffix", "w") as file:
        file["g/x"], file["other"], file["y"] = x["x"], np.arange(7.0), x["label"]
        file["text"] = ["a"] * 50
    notes: list[str] = []
    parts = open_parts([tmp_path / "without suffix"], notes.append)
    assert [sorted(part.fields) for part in parts] in (
        [["g/x", "y"], ["other"]],
        [["other"], ["g/x", "y"]],
    )
    assert notes == ["text: it does not hold numbers"]
    roles = {name: field.role for part in parts for name, field in part.fields.items()}
    assert roles == {"g/x": "feature", "y": "label", "other": "feature"}


@given(st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 255)), max_size=12))
@example([(3100728, 128)])  # a name that is no UTF-8
def test_a_damaged_file_is_refused_or_shown(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    whole, path = folder / "whole.h5", folder / "a.h5"
    if not whole.exists():
        with h5py.File(whole, "w") as file:
            x = np.random.default_rng(0).normal(size=(20, 4, 4))
            file.create_dataset("g/x", data=x, chunks=(4, 4, 4), compression="gzip")
            file["y"] = np.arange(20) % 3
    raw = bytearray(whole.read_bytes())
    for position, value in changes:
        raw[position % min(len(raw), 4000)] = value
    path.write_bytes(raw)
    try:
        for part in open_parts([path], lambda text: None):
            fields, _ = scan(part, 10, lambda text: None)
            json.dumps(fields, allow_nan=False)
    except MpidlError as error:
        assert error.remedy
