"""Tar archives of samples."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from mpidl.data.formats import detect_format, open_source
from mpidl.errors import DataError


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def write(path: Path, members: dict[str, bytes], link: str = "") -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    return path


def test_archives_follow_each_other(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((6, 4, 3, 2)).astype(np.float32)
    paths = []
    for part in range(2):
        members = {}
        for row in range(3 * part, 3 * part + 3):
            members[f"d/{row:04d}.npy"] = npy(x[row])
            members |= (
                {f"d/{row:04d}.json": b'{"label": %d}' % row}
                if part
                else {f"d/{row:04d}.cls": b"%d\n" % row}
            )
        paths.append(write(tmp_path / f"{part}.tar", members))
    assert detect_format(paths[0]) == "webdataset"
    source = open_source(paths)
    assert source.samples == 6
    for start, stop in ((0, 6), (2, 4), (3, 3)):
        arrays = source.read(start, stop)
        np.testing.assert_array_equal(arrays["image"], x[start:stop])
        np.testing.assert_array_equal(arrays["label"], np.arange(start, stop))


def test_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    x = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), np.uint8)
    members = {}
    for row in range(2):
        out = io.BytesIO()
        image.fromarray(x[row]).save(out, "png")
        members |= {f"{row}.png": out.getvalue(), f"{row}.cls": b"1"}
    source = open_source([write(tmp_path / "a.tar", members)])
    np.testing.assert_array_equal(source.read(0, 2)["image"], x)


def test_archives_that_cannot_be_used(tmp_path: Path) -> None:
    good = {"a.npy": npy(np.zeros(3)), "a.cls": b"1"}
    path = tmp_path / "a.tar"
    for members, link, words in (
        ({}, "", "no samples"),
        (good, "b.npy", "is a link"),
        ({"a.npy": good["a.npy"]}, "", "has no class"),
        ({"a.cls": b"1"}, "", "has no image or array"),
        (good | {"a.cls": b"one"}, "", "no whole number"),
        (good | {"a.npy": npy(np.array([{}], object))}, "", "cannot be read"),
        (good | {"b.npy": npy(np.zeros(4)), "b.cls": b"1"}, "", "the first sample is"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            source = open_source([write(path, members, link)])
            source.read(0, source.samples)
        assert "a.tar" in caught.value.where
    write(path, {"a.cls": b"1", "a.npy": npy(np.zeros(3000))})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"a\.tar"):
        open_source([path])
