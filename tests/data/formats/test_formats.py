"""Every kind of raw data, and what is wrong with it."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from mpidl.data.formats import open_source
from mpidl.data.formats.idx import read_idx
from mpidl.data.hdf5 import h5py
from mpidl.errors import DataError


def idx(array: np.ndarray, code: int) -> bytes:
    return (
        b"\0\0"
        + bytes([code, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


@pytest.mark.parametrize(
    ("code", "dtype"), [(8, ">u1"), (9, ">i1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")]
)
@pytest.mark.parametrize("packed", [True, False])
def test_idx(tmp_path: Path, code: int, dtype: str, packed: bool) -> None:
    array = np.arange(24).reshape(4, 3, 2).astype(dtype)
    path = tmp_path / ("a.idx.gz" if packed else "a-ubyte")
    path.write_bytes(gzip.compress(idx(array, code)) if packed else idx(array, code))
    found = read_idx(path)
    np.testing.assert_array_equal(found, array)
    assert found.dtype.isnative


def test_idx_pair(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(idx(np.arange(24, dtype=np.uint8).reshape(4, 3, 2), 8))
    (tmp_path / "y").write_bytes(idx(np.arange(4, dtype=np.uint8), 8))
    source = open_source([tmp_path / "x", tmp_path / "y"])
    arrays = source.read(1, 3)
    assert (
        source.samples == 4
        and arrays["image"].shape == (2, 3, 2)
        and list(arrays["label"]) == [1, 2]
    )


def test_npz_npy_hdf5(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32), np.arange(6)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"], file["y"] = x, y
    for paths in (["a.npz"], ["x.npy", "y.npy"], ["a.h5"]):
        arrays = open_source([tmp_path / path for path in paths]).read(2, 6)
        first, second = arrays.values()
        np.testing.assert_array_equal(first, x[2:])
        np.testing.assert_array_equal(second, y[2:])


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "iris.csv"
    path.write_text("a,species,b\n1,setosa,2\n3,virginica,4.5\n5,setosa,6\n")
    source = open_source([path], label="species")
    arrays = source.read(0, 3)
    np.testing.assert_array_equal(
        arrays["features"], np.array([[1, 2], [3, 4.5], [5, 6]], np.float32)
    )
    assert list(arrays["label"]) == [0, 1, 0] and source.class_names == ("setosa", "virginica")


def test_folder_of_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for name, value in (("cat", 10), ("dog", 200)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(2):
            image.fromarray(np.full((4, 5, 3), value + number, np.uint8)).save(
                tmp_path / "pets" / name / f"{number}.png"
            )
    source = open_source([tmp_path / "pets"])
    arrays = source.read(0, 4)
    assert source.class_names == ("cat", "dog") and list(arrays["label"]) == [0, 0, 1, 1]
    assert arrays["image"].shape == (4, 4, 5, 3) and list(arrays["image"][:, 0, 0, 0]) == [
        10,
        11,
        200,
        201,
    ]


def test_wrong_sources(tmp_path: Path) -> None:
    (tmp_path / "short.gz").write_bytes(gzip.compress(idx(np.zeros((4, 3), np.uint8), 8)[:-1]))
    (tmp_path / "junk").write_bytes(b"hello")
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n3,four\n")
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "uneven.npz", x=np.zeros(3), y=np.zeros(4))
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    for name, words in [
        ("short.gz", "promises"), ("junk", "not an IDX"), ("bad.csv", "line 3"), ("empty", "no class folders"),
        ("uneven.npz", "different numbers"), ("objects.npz", "cannot be read"), ("nothing.npz", "does not exist"),
    ]:  # fmt: skip
        with pytest.raises(DataError, match=words) as caught:
            open_source([tmp_path / name])
        assert name in caught.value.where


def test_the_label_column_is_the_label_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "iris.csv"
    path.write_text("a;species\n1;setosa\n3;virginica\n")
    assert open_source([path], label="species").label == "label"
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2), np.float32), category=np.arange(3))
    assert open_source([tmp_path / "a.npz"], label="category").label == "category"
    with pytest.raises(DataError, match="no field 'kind', only category, x"):
        open_source([tmp_path / "a.npz"], label="kind")


@pytest.mark.parametrize("shape", [(3, 32, 30), (1, 28, 28), (4, 8, 8)])
def test_channels_first(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = np.arange(5 * np.prod(shape)).reshape(5, *shape)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(5))
    paths = [tmp_path / "a.npz"]
    with pytest.raises(DataError, match="channels first") as caught:
        open_source(paths)
    assert "--channels-first" in caught.value.remedy and str(shape) in caught.value.what
    turned = open_source(paths, channels="first").read(1, 4)
    np.testing.assert_array_equal(turned["x"], x[1:4].transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(turned["y"], [1, 2, 3])
    np.testing.assert_array_equal(open_source(paths, channels="last").read(0, 5)["x"], x)


@pytest.mark.parametrize(
    "shape", [(32, 32, 3), (28, 28, 1), (3, 4, 4), (3, 3, 3), (64, 64, 8), (10, 3)]
)
def test_channels_last_are_taken_as_they_are(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((2, *shape)))
    assert open_source([tmp_path / "a.npz"]).read(0, 2)["x"].shape == (2, *shape)


def test_nothing_to_turn(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 9)))
    with pytest.raises(DataError, match="no images .* to transpose"):
        open_source([tmp_path / "a.npz"], channels="first")


def test_torn_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(300))
    whole = (tmp_path / "a.npz").read_bytes()
    np.save(tmp_path / "a.npy", np.zeros(300))
    row = (tmp_path / "a.npy").read_bytes()
    for name, content in [
        ("cut.npz", whole[:-40]), ("bent.npz", whole[:60] + b"\xff" * 60 + whole[120:]), ("empty.npz", b""), ("empty.npy", b""),
        ("cut.npy", row[:-40]), ("short", b"\0\0\x08\x03\0\0"), ("cut.gz", gzip.compress(b"\0\0\x08\x01\0\0\0\x05hello")[:-9]),
    ]:  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            open_source([tmp_path / name])
