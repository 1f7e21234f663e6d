"""`mpidl index` and `mpidl look` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidl.cli.look import BARS, WIDTH, bars
from mpidl.cli.main import main
from mpidl.data.hdf5 import h5py
from tests.cli.test_data_commands import Run, configure, mpidl, series

__all__ = ["mpidl"]  # the fixture


def make(path: Path, samples: int = 60, **layout: Any) -> Path:
    arrays = series(samples)
    with h5py.File(path, "w") as file:
        file.create_dataset("waves/x", data=arrays["x"], **layout)
        file["y"], file["text"] = arrays["y"], ["a"] * samples
    return path


def test_training_in_place_is_training_from_shards(tmp_path: Path, mpidl: Run) -> None:
    """The same loss and accuracy, to the last bit."""
    arrays = series(120)
    np.savez(tmp_path / "a.npz", **arrays)
    files = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for file, part in zip(files, (slice(0, 50), slice(50, 120)), strict=True):
        with h5py.File(file, "w") as opened:
            opened["x"], opened["y"] = arrays["x"][part], arrays["y"][part]
    results = []
    for command in (["shard", tmp_path / "a.npz"], ["index", *files]):
        status, made, err = mpidl(*command, "--out", tmp_path / "data", "--label", "y")
        assert status == 0 and made["samples"] == 120, err
        config = configure(tmp_path, epochs=3)
        small = "data.window_bytes=3000"  # read again in every epoch
        status, result, err = mpidl("train", config, "--overwrite", "--set", small)
        assert status == 0, err
        results.append((result["loss"], result["accuracy"]))
        (tmp_path / "data" / "manifest.json").rename(tmp_path / "done.json")
        for file in (tmp_path / "data").iterdir():
            file.unlink()
        (tmp_path / "data").rmdir()
    assert results[0] == results[1]


def test_a_file_that_changes_ends_the_run_with_one_message(tmp_path: Path, mpidl: Run) -> None:
    path = make(tmp_path / "a.h5")
    assert mpidl("index", path, "--out", tmp_path / "data", "--label", "y")[0] == 0
    with h5py.File(path, "r+") as file:
        file["more"] = np.zeros(1000)
    status, _, err = mpidl("train", configure(tmp_path))
    assert status == 1 and str(path) in err and "run 'mpidl index' again" in err


def test_what_index_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make(tmp_path / "a.h5", 600, chunks=(600, 12, 1), compression="gzip")
    out = tmp_path / "data"
    assert main(["index", str(path), "--out", str(out), "--label", "y", "--sample", "0.1"]) == 0
    text, err = capsys.readouterr()
    assert "600 samples in 1 file(s) in place" in text and "x: float32[12, 2] (feature)" in text
    assert "estimates from 60 evenly spaced samples of 600" in text
    assert "text (it does not hold numbers)" in err and "h5repack" not in err
    path = make(tmp_path / "b.h5", 6000, chunks=(6000, 12, 1), compression="gzip")
    assert main(["index", str(path), "--out", str(out), "--label", "y", "--overwrite"]) == 0
    err = capsys.readouterr().err
    assert "reads and decompresses 576,000 bytes (6,000 times as many)" in err
    assert f"h5repack -l waves/x:CHUNK=2730x12x2 {path} {tmp_path}/b.repacked.h5" in err


@pytest.mark.parametrize("rows", ["5", "a:b", "1:2:3"])
def test_rows_that_are_none(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["index", "a.h5", "--out", "set", "--rows", rows])
    assert "is not START:STOP" in capsys.readouterr().err


def test_what_look_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make(tmp_path / "a.h5", chunks=(7, 12, 2), compression="gzip")
    with h5py.File(path, "r+") as file:
        file["waves/x"][3, :2] = np.nan
    picture = tmp_path / "a.png"
    assert main(["look", str(path), "--picture", str(picture)]) == 0
    out, err = capsys.readouterr()
    assert "60 samples" in out and "evenly spaced" not in out
    assert "waves/x: float32[12, 2], feature" in out and "4 NaN" in out
    assert "in the file: chunks 7x12x2, gzip" in out and "text: it does not hold numbers" in err
    assert picture.stat().st_size > 1000 and str(picture) in out
    assert main(["look", str(path), "--samples", "20", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    part = next(part for part in found["parts"] if "y" in part["fields"])
    assert part["scanned"] == 20 and part["samples"] == 60 and found["picture"] is None
    assert sum(entry["count"] for entry in part["fields"]["y"]["classes"].values()) == 20


def test_look_needs_something_to_look_at(tmp_path: Path, mpidl: Run) -> None:
    for words, arguments in {
        "does not exist": [tmp_path / "none"],
        "is negative": [make(tmp_path / "a.h5"), "--samples", "-1"],
        "unknown kind of plot": [tmp_path / "a.h5", "--picture", tmp_path / "a.docx"],
    }.items():
        status, _, err = mpidl("look", *arguments)
        assert status == 1 and words in err and "what to do" in err


def test_bars() -> None:
    classes = {str(k): {"name": None, "count": 100 - k} for k in range(BARS + 5)}
    classes["3"]["name"] = "a \x1b[31m" + "long " * 20
    lines = bars(classes)
    assert len(lines) == BARS + 1 and lines[-1].startswith("5 other classes: 390 (")
    assert lines[0].count("#") == WIDTH and "\x1b" not in lines[3] and len(lines[3]) < 120
    assert bars({}) == []
