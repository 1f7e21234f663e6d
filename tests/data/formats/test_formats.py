"""Every kind of raw data, and what is wrong with it."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidl.cli.main import make_parser
from mpidl.data.fields import infer_fields
from mpidl.data.formats import IMPORTERS, detect_format, open_source
from mpidl.data.formats.idx import read_idx
from mpidl.data.hdf5 import h5py
from mpidl.errors import ConfigError, DataError
from mpidl.options import documented
from tests.conftest import ROOT


def idx(array: np.ndarray, code: int) -> bytes:
    return (
        b"\0\0"
        + bytes([code, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def write_idx(folder: Path, x: np.ndarray, y: np.ndarray) -> list[Path]:
    (folder / "x-ubyte").write_bytes(idx(x, 8))
    (folder / "y-ubyte.gz").write_bytes(gzip.compress(idx(y, 8)))
    return [folder / "x-ubyte", folder / "y-ubyte.gz"]


def write_npy(folder: Path, x: np.ndarray, y: np.ndarray) -> list[Path]:
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    return [folder / "x.npy", folder / "y.npy"]


def write_npz(folder: Path, x: np.ndarray, y: np.ndarray) -> list[Path]:
    np.savez(folder / "a.npz", image=x, label=y)
    return [folder / "a.npz"]


def write_hdf5(folder: Path, x: np.ndarray, y: np.ndarray) -> list[Path]:
    with h5py.File(folder / "a.h5", "w") as file:
        file["image"], file["label"] = x, y
    return [folder / "a.h5"]


def write_csv(folder: Path, x: np.ndarray, y: np.ndarray) -> list[Path]:
    header = ",".join(["label", *(f"pixel{number}" for number in range(x[0].size))])
    table = np.column_stack([y, x.reshape(len(x), -1)])
    np.savetxt(
        folder / "a.csv",
        table,
        fmt="%d",
        delimiter=",",
        header=header,
        comments="",
        encoding="utf8",
    )
    return [folder / "a.csv"]


def write_images(folder: Path, x: np.ndarray, y: np.ndarray) -> list[Path]:
    image = pytest.importorskip("PIL.Image")
    for number, (pixels, label) in enumerate(zip(x, y, strict=True)):
        target = folder / "images" / str(label)
        target.mkdir(parents=True, exist_ok=True)
        image.fromarray(pixels).save(target / f"{number:03d}.png")
    return [folder / "images"]


# For each format: writes bytes x (n, h, w) with labels y (n,), which ascend
EXAMPLES: dict[str, Callable[[Path, np.ndarray, np.ndarray], list[Path]]] = {
    "csv": write_csv,
    "npz": write_npz,
    "npy": write_npy,
    "hdf5": write_hdf5,
    "images": write_images,
    "idx": write_idx,
}


OTHERS = ("parquet", "netcdf", "zarr", "webdataset", "text")


def test_each_format_has_an_example() -> None:
    """Of images; what holds no images has tests of its own."""
    assert [name for name in IMPORTERS if name not in OTHERS] == list(EXAMPLES)


@pytest.fixture
def example(tmp_path: Path, name: str) -> tuple[list[Path], np.ndarray, np.ndarray]:
    """The paths of an example, and its arrays."""
    x = np.random.default_rng(0).integers(0, 256, (7, 6, 5), np.uint8)
    y = np.sort(np.arange(7, dtype=np.uint8) % 3)
    return EXAMPLES[name](tmp_path, x, y), x, y


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_format_is_detected_and_read_in_any_range(name: str, example: Any) -> None:
    paths, x, y = example
    assert detect_format(paths[0]) == name
    source = open_source(paths)
    assert source.samples == 7
    for start, stop in ((0, 7), (2, 5), (6, 7), (3, 3)):
        image, label = source.read(start, stop).values()
        np.testing.assert_array_equal(image.reshape(-1, 6, 5), x[start:stop])
        np.testing.assert_array_equal(label, y[start:stop])


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_format_takes_the_files_of_another_one(name: str, example: Any) -> None:
    paths, *_ = example
    for other in EXAMPLES:
        if other != name:
            with pytest.raises(DataError):
                open_source(paths[:1], format=other)


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_format_says_how_many_files_it_takes(name: str, example: Any) -> None:
    paths, *_ = example
    if not IMPORTERS[name].SEVERAL_FILES:
        with pytest.raises(DataError, match=f"one input of the format {name}, got 2"):
            open_source([*paths, *paths])


@pytest.mark.parametrize("name", IMPORTERS)
def test_each_format_is_in_the_help_and_in_the_docs(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        make_parser().parse_args(["shard", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    importer = IMPORTERS[name]
    assert importer.INPUT in shown
    suffixes = ", ".join(f"`{suffix}`" for suffix in importer.SUFFIXES)
    options = ", ".join(f"`--{key.replace('_', '-')}`" for key in importer.Options.keys())
    row = f"| {name} | {importer.INPUT} | {suffixes} | {options} |".replace("  ", " ")
    assert row in (ROOT / "docs" / "data.md").read_text()


@pytest.mark.parametrize("name", EXAMPLES)
def test_options_are_documented_and_refused_elsewhere(name: str, example: Any) -> None:
    own = IMPORTERS.options(name).keys()
    assert set(own) <= set(documented(IMPORTERS.options(name)))
    for other in IMPORTERS:
        for key in set(IMPORTERS.options(other).keys()) - set(own):
            with pytest.raises(DataError, match=f"only .*{other}") as caught:
                open_source(example[0], **{key: True})
            assert caught.value.where == f"--{key}"


def test_a_format_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "table.dat"
    path.write_text("a,label\n1,0\n2,1\n")
    with pytest.raises(DataError, match="no known format") as caught:
        open_source([path])
    assert all(name in caught.value.remedy for name in IMPORTERS)
    assert open_source([path], format="csv").samples == 2
    with pytest.raises(ConfigError, match="no such format") as wrong:
        open_source([path], format="cvs")
    assert "did you mean 'csv'" in wrong.value.remedy


@pytest.mark.parametrize("value", ["yes", 3])
def test_options_have_types(tmp_path: Path, value: Any) -> None:
    (tmp_path / "a.csv").write_text("a,label\n1,0\n")
    with pytest.raises(ConfigError, match="true or false"):
        open_source([tmp_path / "a.csv"], header=value)


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


def test_folders_within_a_class_folder_belong_to_the_class(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for value, name in enumerate(["cat/2020/a.png", "cat/b.bmp", "dog/x/y/c.png"]):
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(np.full((2, 2), value, np.uint8)).save(tmp_path / "pets" / name)
    arrays = open_source([tmp_path / "pets"]).read(0, 3)
    assert list(arrays["label"]) == [0, 0, 1] and list(arrays["image"][:, 0, 0]) == [0, 1, 2]


def test_wrong_sources(tmp_path: Path) -> None:
    (tmp_path / "short.gz").write_bytes(gzip.compress(idx(np.zeros((4, 3), np.uint8), 8)[:-1]))
    (tmp_path / "junk").write_bytes(b"hello")
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n3,four\n")
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "uneven.npz", x=np.zeros(3), y=np.zeros(4))
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    for name, words in [
        ("short.gz", "promises"),
        ("junk", "not an IDX"),
        ("bad.csv", "line 3"),
        ("empty", "no class folders"),
        ("uneven.npz", "different numbers"),
        ("objects.npz", "cannot be read"),
        ("nothing.npz", "does not exist"),
    ]:
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
    with pytest.raises(DataError, match=r"no images .* to transpose"):
        open_source([tmp_path / "a.npz"], channels="first")


def test_torn_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(300))
    whole = (tmp_path / "a.npz").read_bytes()
    np.save(tmp_path / "a.npy", np.zeros(300))
    row = (tmp_path / "a.npy").read_bytes()
    for name, content in [
        ("cut.npz", whole[:-40]),
        ("bent.npz", whole[:60] + b"\xff" * 60 + whole[120:]),
        ("empty.npz", b""),
        ("empty.npy", b""),
        ("cut.npy", row[:-40]),
        ("short", b"\0\0\x08\x03\0\0"),
        ("cut.gz", gzip.compress(b"\0\0\x08\x01\0\0\0\x05hello")[:-9]),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            open_source([tmp_path / name])


@pytest.mark.parametrize("suffix", ["csv", "parquet", "npz"])
def test_whole_numbers_can_be_amounts(tmp_path: Path, suffix: str) -> None:
    ages, path = np.array([30, -4, 71]), tmp_path / f"people.{suffix}"
    if suffix == "csv":
        path.write_text("a,b,age\n" + "".join(f"1.5,2,{age}\n" for age in ages))
    elif suffix == "npz":
        np.savez(path, a=np.ones((3, 2), np.float32), age=ages)
    else:
        pa = pytest.importorskip("pyarrow")
        table = pa.table({"a": [1.0, 2.0, 3.0], "age": ages})
        pytest.importorskip("pyarrow.parquet").write_table(table, path)
    (values,) = [
        array
        for name, array in open_source([path], "age", real_labels=True).read(0, 3).items()
        if name in ("age", "label")
    ]
    assert values.dtype == np.float64
    np.testing.assert_array_equal(values, ages)
    assert any(array.dtype.kind == "i" for array in open_source([path], "age").read(0, 3).values())


def test_words_are_no_amounts(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,kind\n1,cat\n2,dog\n")
    with pytest.raises(DataError, match="'label' holds words"):
        open_source([tmp_path / "x.csv"], "kind", real_labels=True)


def test_arrays_without_values_or_samples(tmp_path: Path) -> None:
    for name, array, message in (
        ("wide", np.ones((6, 0)), "hold no values"),
        ("single", np.array(3.0), "single number"),
    ):
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(DataError, match=message):
            infer_fields(open_source([tmp_path / f"{name}.npy"]))
