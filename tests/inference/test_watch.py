"""A watched folder: which files are complete, and each of them once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidl.errors import ConfigError
from mpidl.inference.watch import REPORT, STOP, Inbox, Ready, Record, read_report


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def names(inbox: Inbox) -> list[str]:
    return [one.path.name for one in inbox.ready()]


def record(inbox: Inbox, one: Ready, status: str = "done") -> None:
    stamp = one.stamp
    inbox.record(Record(one.path.name, stamp.bytes, stamp.mtime_ns, status))  # type: ignore[arg-type]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def inbox(tmp_path: Path, clock: Clock) -> Inbox:
    return Inbox(tmp_path, tmp_path, settle=5, clock=clock)


def test_a_file_is_complete_when_it_has_settled(tmp_path: Path, inbox: Inbox, clock: Clock) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(b"12")
    os.utime(path, (1, 1))  # an old time is no proof: the clock of a file server may differ
    assert names(inbox) == []
    clock.now += 4
    with path.open("ab") as file:
        file.write(b"3")
    assert names(inbox) == []
    clock.now += 4
    assert names(inbox) == []
    clock.now += 1
    assert names(inbox) == ["a.npz"]
    os.utime(path, (5, 5))  # written again in place, of the same size
    assert names(inbox) == []
    clock.now += 5
    assert names(inbox) == ["a.npz"]


def test_each_is_scored_once_also_by_a_later_job(
    tmp_path: Path, inbox: Inbox, clock: Clock
) -> None:
    for index, name in enumerate(("b.npz", "a.npz", "c.npz")):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (index, index))
    inbox.ready()
    clock.now += 5
    b, a, c = inbox.ready()
    assert [one.path.name for one in (b, a, c)] == ["b.npz", "a.npz", "c.npz"], "by time"
    record(inbox, b)
    record(inbox, a, "failed")
    assert names(inbox) == ["c.npz"]
    with (tmp_path / REPORT).open("ab") as file:
        file.write(b'{"file": "c.np')  # a crash in mid-line
    later = Inbox(tmp_path, tmp_path, settle=5, clock=clock)
    later.ready()
    clock.now += 5
    assert names(later) == ["c.npz"]
    (tmp_path / "b.npz").write_bytes(b"a new measurement")
    later.ready()
    clock.now += 5
    assert sorted(names(later)) == ["b.npz", "c.npz"]


def test_what_is_no_input(tmp_path: Path, clock: Clock) -> None:
    inbox = Inbox(tmp_path, tmp_path, pattern="*.npz*", settle=0, clock=clock)
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "gone.npz").symlink_to(tmp_path / "nowhere")
    for name in (".a.npz", "a.npz.partial", "a.npz.tmp", "a.npz~", "a.npz.predictions.h5", "b.csv"):
        (tmp_path / name).write_bytes(b"x")
    assert names(inbox) == [] and not inbox.told_to_stop
    (tmp_path / "a.npz.tmp").rename(tmp_path / "a.npz")
    assert names(inbox) == ["a.npz"], "renamed into place: with --settle 0 at once"
    (tmp_path / STOP).touch()
    assert inbox.told_to_stop and names(inbox) == ["a.npz"]


def test_folders_that_are_none(tmp_path: Path) -> None:
    for folders in ((tmp_path / "no", tmp_path), (tmp_path, tmp_path / "no")):
        with pytest.raises(ConfigError, match="is no folder") as caught:
            Inbox(*folders)
        assert caught.value.where == str(tmp_path / "no")


@given(st.binary(max_size=300))
def test_any_bytes_are_a_report(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    path = tmp_path_factory.mktemp("report") / REPORT
    good = b'{"file": "a", "bytes": 1, "mtime_ns": 2, "status": "done"}\n'
    path.write_bytes(good + junk + b"\n" + good)
    found = read_report(path)
    assert found[0] == found[-1] == Record("a", 1, 2, "done")
