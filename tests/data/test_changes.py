"""A file that changes while it is trained from is noticed, and named with what has changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidl.data import LaneSampler, Loader, Reader
from mpidl.data.hdf5 import h5py
from mpidl.data.index import IndexOptions, index_files
from mpidl.errors import DataError

SAMPLES = 60


@pytest.fixture
def make(tmp_path: Path, context: Any) -> Callable[..., Path]:
    """make(checksum=...) -> the file; the data set is tmp_path / "set"."""

    def run(**options: Any) -> Path:
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file["x"] = np.arange(SAMPLES, dtype=np.float32)[:, None] * np.ones(8, np.float32)
            file["y"] = np.arange(SAMPLES) % 3
        index_files([path], tmp_path / "set", IndexOptions(**options), context)
        return path

    return run


def touch(path: Path) -> None:
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 3_000_000))


def overwrite_a_value(path: Path) -> None:
    with open(path, "r+b") as file:  # in place: threads that read ahead never see it shorter
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    touch(path)  # also where the clock of the file system is too coarse


def append(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes() + b"x")
    other.rename(path)


CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a new time": (touch, "it was modified at .*, before at"),
    "a new value": (overwrite_a_value, "it was modified at"),
    "more bytes": (append, r"it had [\d,]+ bytes, now it has"),
    "fewer bytes": (lambda path: os.truncate(path, 3000), "now it has 3,000"),
    "another file of its name": (replace, r"it had [\d,]+ bytes"),
    "no file": (lambda path: path.unlink(), "is gone: it was removed or renamed"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_between_epochs(tmp_path: Path, make: Callable[..., Path], name: str) -> None:
    path = make()
    reader = Reader(tmp_path / "set")
    loader = Loader(reader, LaneSampler(SAMPLES, 10, window=2))
    assert len(list(loader.epoch(0))) == 6
    change, words = CHANGES[name]
    change(path)
    with pytest.raises(DataError, match=words) as caught:
        next(loader.epoch(1))
    assert caught.value.where == str(path) and "mpidl index" in caught.value.remedy
    loader.close()


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_within_an_epoch(tmp_path: Path, make: Callable[..., Path], name: str) -> None:
    """The window after the change, or the one that was being read ahead, is refused."""
    path = make()
    loader = Loader(Reader(tmp_path / "set"), LaneSampler(SAMPLES, 10, window=1))
    batches = loader.epoch(0)
    next(batches)
    change, words = CHANGES[name]
    change(path)
    with pytest.raises(DataError, match=words):
        list(batches)
    loader.close()


def test_a_failed_read_is_explained_by_the_change(
    tmp_path: Path, make: Callable[..., Path]
) -> None:
    path = make()
    reader = Reader(tmp_path / "set")
    reader.read([(0, 1)])
    os.truncate(path, 100)
    with pytest.raises(DataError, match="now it has 100") as caught:
        reader.read([(0, SAMPLES)])
    assert "damaged" not in caught.value.what


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "no file"])
def test_a_change_between_indexing_and_training(
    tmp_path: Path, make: Callable[..., Path], name: str
) -> None:
    path = make()
    CHANGES[name][0](path)
    with pytest.raises(DataError, match=r"since it was indexed|manifest says") as caught:
        Reader(tmp_path / "set")
    assert caught.value.where == str(path) and "mpidl index" in caught.value.remedy


def test_a_checksum_decides_where_there_is_one(tmp_path: Path, make: Callable[..., Path]) -> None:
    path = make(checksum=True)
    touch(path)  # as a copy of the file has another time
    with Reader(tmp_path / "set") as reader:
        reader.read([(0, SAMPLES)])
    with pytest.raises(DataError, match=r"data\.verify = true"):
        Reader(tmp_path / "set", verify=False)
    overwrite_a_value(path)
    with pytest.raises(DataError, match="its SHA-256 is"):
        Reader(tmp_path / "set")


def test_data_that_are_in_memory_do_not_change(
    tmp_path: Path, make: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """They are noted once, and the run goes on with what it has read."""
    path = make()
    loader = Loader(Reader(tmp_path / "set"), LaneSampler(SAMPLES, 10))
    before = [batch.arrays["x"].copy() for batch in loader.epoch(0)]
    overwrite_a_value(path)
    for epoch in (1, 2):
        after = [batch.arrays["x"].copy() for batch in loader.epoch(epoch)]
        assert sorted(np.concatenate(after)[:, 0]) == sorted(np.concatenate(before)[:, 0])
    err = capfd.readouterr().err
    assert err.count(str(path)) == 1 and "goes on with what it has read" in err
    loader.close()


def test_shards_that_change_are_noticed_too(make_dataset: Any) -> None:
    folder, _ = make_dataset(50, 3)
    loader = Loader(Reader(folder), LaneSampler(50, 10, window=2))
    list(loader.epoch(0))
    touch(folder / "shard-00001.h5")
    with pytest.raises(DataError, match=r"shard-00001.h5: changed while it was in use"):
        next(loader.epoch(1))
    loader.close()
