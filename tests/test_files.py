"""What is written is complete or absent."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from mpidl.files import publish, publish_new, write_atomically, write_file


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_file(path, b"old")
    with pytest.raises(ValueError, match="no"), write_atomically(path) as partial:
        partial.write_bytes(b"half")
        raise ValueError("no")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        write_file(tmp_path / "none" / "a.txt", b"")


def test_nothing_is_published_before_it_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsync of the file, rename, fsync of the folder; the same for a folder of files."""
    calls: list[str] = []
    replace, fsync, opened = Path.replace, os.fsync, os.open
    names: dict[int, str] = {}

    def note_open(path: Any, *args: Any, **options: Any) -> int:
        handle = opened(path, *args, **options)
        names[handle] = Path(path).name
        return handle

    def note_fsync(handle: int) -> None:
        calls.append(f"fsync {names[handle]}")
        fsync(handle)

    def note_replace(path: Path, target: Path) -> Path:
        calls.append(f"rename {path.name} {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "open", note_open)
    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    write_file(tmp_path / "a", b"x")
    folder = tmp_path.name
    assert calls == ["fsync a.partial", "rename a.partial a", f"fsync {folder}"]
    calls.clear()
    (tmp_path / "b.partial").mkdir()
    publish(tmp_path / "b.partial", tmp_path / "b")
    assert calls == ["fsync b.partial", "rename b.partial b", f"fsync {folder}"]


def test_an_interrupted_publication_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    write_file(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        write_file(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_takes_no_place_of_another(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on file systems without hard links."""

    def refuse(*args: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    partial, final = tmp_path / "a.partial", tmp_path / "a"
    partial.write_text("ours")
    final.write_text("theirs")
    assert not publish_new(partial, final)
    assert (partial.read_text(), final.read_text()) == ("ours", "theirs")
    final.unlink()
    assert publish_new(partial, final)
    assert final.read_text() == "ours" and list(tmp_path.iterdir()) == [final]
