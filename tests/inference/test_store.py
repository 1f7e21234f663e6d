"""The file of a prediction: what is done, what is left, and what must be the same."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidl.comm.context import init
from mpidl.data.hdf5 import open_file
from mpidl.errors import DataError
from mpidl.inference.store import Layout, Notes, OtherPrediction, Store

LAYOUT = Layout(
    samples=23,
    chunk=5,
    columns={"key": ((), "|S3"), "label": ((), "<i8"), "probability": ((3,), "<f4")},
    sums=2,
    about={"checkpoint": "abc", "outputs": ["predictions"]},
    notes=Notes({"task": "classification"}, ("a", "b", "ü")),
)


def fill(store: Store, chunks: list[int]) -> None:
    for chunk in chunks:
        low, high = store.layout.rows(chunk)
        rows = np.arange(low, high)
        shares = np.stack([rows, rows + 0.5, -rows], axis=1).astype(np.float32)
        keys = np.array([f"ü{row % 7}".encode() for row in rows])
        columns = {"key": keys, "label": rows, "probability": shares}
        store.write(np.array([chunk]), columns, np.array([[1.0, chunk]]))


def test_an_interrupted_file_is_gone_on_with(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.h5", tmp_path / "parts.h5"
    store = Store(whole, LAYOUT, init(), restart=False)
    assert store.pending.tolist() == [0, 1, 2, 3, 4]
    fill(store, [0, 1, 2, 3, 4])
    store.close()
    assert store.sums().tolist() == [5.0, 10.0]
    store.finish(overwrite=False)
    first = Store(parts, LAYOUT, init(), restart=False)
    fill(first, [3, 1])
    first.close()
    with pytest.raises(DataError, match=r"3 chunk\(s\) are not done, the first is 0"):
        first.finish(overwrite=False)
    second = Store(parts, LAYOUT, init(), restart=False)
    assert second.pending.tolist() == [0, 2, 4] and second.done == 10
    fill(second, [4, 0, 2])
    second.close()
    second.finish(overwrite=False)
    assert parts.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.h5", "whole.h5"]
    with open_file(whole) as file:
        np.testing.assert_array_equal(file["label"][...], np.arange(23))
        assert list(file["key"].asstr()[5:8]) == ["ü5", "ü6", "ü0"]
        assert file["probability"][22].tolist() == [22, 22.5, -22]
        assert [name.decode() for name in file["class_names"]] == ["a", "b", "ü"]
        assert LAYOUT.about.items() <= json.loads(file.attrs["prediction"]).items()


def test_a_file_that_somebody_has_made_meanwhile_stays(tmp_path: Path) -> None:
    store = Store(tmp_path / "p.h5", LAYOUT, init(), restart=False)
    fill(store, [0, 1, 2, 3, 4])
    store.close()
    (tmp_path / "p.h5").write_text("of another program")
    with pytest.raises(DataError, match=r"meanwhile; .* complete in p.h5.partial") as caught:
        store.finish(overwrite=False)
    assert caught.value.where == str(tmp_path / "p.h5")
    assert (tmp_path / "p.h5").read_text() == "of another program"
    again = Store(tmp_path / "p.h5", LAYOUT, init(), restart=False)
    again.close()
    assert again.done == 23 and not again.pending.size
    again.finish(overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["p.h5"]


@given(st.integers(1, 200), st.integers(1, 30), st.data())
def test_samples_of_chunks(samples: int, chunk: int, data: st.DataObject) -> None:
    layout = replace(LAYOUT, samples=samples, chunk=chunk)
    chosen = data.draw(st.sets(st.integers(0, layout.chunks - 1)))
    expected = sum(high - low for low, high in map(layout.rows, chosen))
    assert layout.count(np.array(sorted(chosen), np.int64)) == expected


def test_a_chunk_that_was_not_marked_is_not_done(tmp_path: Path) -> None:
    """As after `kill -9`: the rows are there, but nothing says that they are on disk."""
    store = Store(tmp_path / "p.h5", LAYOUT, init(), restart=False)
    fill(store, [0, 1])
    for restart in (False, True):
        with pytest.raises(DataError, match="another prediction writes this file now"):
            Store(tmp_path / "p.h5", LAYOUT, init(), restart=restart)
    os.close(store._handle)
    assert left(tmp_path, restart=False) == 5
    again = Store(tmp_path / "p.h5", LAYOUT, init(), restart=False)
    fill(again, [0, 1])
    again.close()
    assert left(tmp_path, restart=False) == 3
    assert left(tmp_path, restart=True) == 5


def left(folder: Path, *, restart: bool, layout: Layout = LAYOUT) -> int:
    store = Store(folder / "p.h5", layout, init(), restart=restart)
    store.close()
    return store.pending.size


def test_another_prediction_is_not_mixed_in(tmp_path: Path) -> None:
    Store(tmp_path / "p.h5", LAYOUT, init(), restart=False).close()
    other = replace(LAYOUT, about=LAYOUT.about | {"checkpoint": "xyz"})
    with pytest.raises(DataError, match="with another checkpoint") as caught:
        Store(tmp_path / "p.h5", other, init(), restart=False)
    assert "--restart" in caught.value.remedy
    assert left(tmp_path, restart=True, layout=other) == 5
    with pytest.raises(DataError, match="with another chunk"):
        left(tmp_path, restart=False, layout=replace(other, chunk=4))
    path = tmp_path / "p.h5.partial"
    with open_file(path, "r+") as file:
        del file["label"]
        file["label"] = np.zeros(3)
    with pytest.raises(DataError, match="'label' of an interrupted prediction is another one"):
        left(tmp_path, restart=False, layout=other)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "p.h5.partial").write_text("no HDF5")
    with pytest.raises(OtherPrediction, match="or it is damaged") as caught:
        Store(tmp_path / "p.h5", LAYOUT, init(), restart=False)
    assert "--restart" in caught.value.remedy and caught.value.where.endswith("p.h5.partial")
    with open_file(tmp_path / "p.h5.partial", "w") as file:
        file.attrs["prediction"] = "[" * 10_000
    with pytest.raises(OtherPrediction):
        Store(tmp_path / "p.h5", LAYOUT, init(), restart=False)
