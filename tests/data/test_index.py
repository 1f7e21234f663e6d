"""Data sets in place: what is read is what the files hold, and no file is trusted."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpidl.data import LaneSampler, Loader, Reader
from mpidl.data import reader as reader_module
from mpidl.data.hdf5 import h5py, open_file
from mpidl.data.index import Indexed, IndexOptions, index_files
from mpidl.data.manifest import load_manifest
from mpidl.errors import DataError
from mpidl.security.sealed_file import content_sha256
from tests.data.test_dataset import edit_manifest

Index = Callable[..., Indexed]
RNG = np.random.default_rng(0)
X = RNG.normal(3.0, 2.0, (37, 6, 4)).astype(np.float32)
Y = np.arange(37) % 5


@pytest.fixture
def index(tmp_path: Path, context: Any) -> Index:
    """index(FILE, ..., option=...) -> what was found; the data set is tmp_path / "set"."""

    def run(*files: Path, **options: Any) -> Indexed:
        notes: list[str] = []
        found = index_files(
            files, tmp_path / "set", IndexOptions(**options), context, note=notes.append
        )
        found.notes = notes  # type: ignore[attr-defined]
        return found

    return run


def make(path: Path, x: np.ndarray = X, y: np.ndarray = Y, **layout: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("fields/x", data=x, **layout)
        file["y"] = y
    return path


LAYOUTS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "chunks of samples": {"chunks": (5, 6, 4)},
    "chunks that divide samples": {"chunks": (5, 2, 3)},
    "compressed": {"chunks": (7, 6, 4), "compression": "gzip", "shuffle": True},
    "checksums": {"chunks": (7, 6, 4), "fletcher32": True},
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", ">i2", "|u1", "bool"])
def test_any_layout_and_dtype_is_read_as_it_is(
    tmp_path: Path, index: Index, name: str, dtype: str
) -> None:
    x = (X > 3) if dtype == "bool" else X.astype(dtype)
    index(make(tmp_path / "a.h5", x, **LAYOUTS[name]))
    with Reader(tmp_path / "set") as reader:
        found = reader.read([(2, 9), (30, 37)])
    np.testing.assert_array_equal(found["x"], np.concatenate([x[2:9], x[30:]]))
    np.testing.assert_array_equal(found["y"], np.concatenate([Y[2:9], Y[30:]]))
    assert found["x"].dtype.isnative and found["x"].dtype.kind in "fiu"


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    start=st.integers(-3, 30),
    stop=st.none() | st.integers(-3, 40),
    cuts=st.lists(st.integers(0, 40), max_size=6, unique=True),
)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_rows_of_any_files(
    tmp_path: Path, index: Index, lengths: list[int], start: int, stop: int | None, cuts: list[int]
) -> None:
    files, all_x = [], np.arange(sum(lengths), dtype=np.float32)[:, None] * np.ones(3, np.float32)
    before = 0
    for number, length in enumerate(lengths):
        part = all_x[before : before + length]
        files.append(make(tmp_path / f"{number}.h5", part, np.zeros(length, np.int32)))
        before += length
    wanted = all_x[start:stop]
    options: dict[str, Any] = {"rows": (start, stop), "overwrite": True, "labels": ["y"]}
    if not len(wanted):
        with pytest.raises(DataError):
            index(*files, **options)
        return
    index(*files, **options)
    edges = sorted(min(cut, len(wanted)) for cut in cuts)[: len(cuts) // 2 * 2]
    pieces = list(zip(edges[::2], edges[1::2], strict=True))
    with Reader(tmp_path / "set") as reader:
        assert len(reader) == len(wanted)
        found = reader.read(pieces)["x"]
        rows = [row for low, high in pieces for row in range(low, high)]
        np.testing.assert_array_equal(found, wanted[rows])
        for sample in range(len(wanted)):
            name, row = reader.locate(sample)
            file = next(f for f in files if str(f) == name)
            with open_file(file) as opened:
                np.testing.assert_array_equal(opened["fields/x"][row], wanted[sample])


def test_the_manifest_says_what_is_there(tmp_path: Path, index: Index) -> None:
    path = make(tmp_path / "a.h5")
    index(path, checksum=True, rows=(2, 30))
    manifest = load_manifest(tmp_path / "set")
    (shard,) = manifest.shards
    assert manifest.in_place and manifest.samples == 28 and shard.first == 2
    assert shard.file == str(path) and shard.sha256 == content_sha256(path)
    assert shard.datasets == {"x": "fields/x", "y": "y"}
    assert (shard.bytes, shard.mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)
    assert manifest.fields["y"].classes == 5
    statistics = manifest.fields["x"].statistics
    assert statistics is not None
    exact = X[2:30].astype(np.float64)
    assert statistics.mean == pytest.approx(exact.mean(), rel=1e-12)
    assert statistics.std == pytest.approx(exact.std(), rel=1e-12)
    assert list((tmp_path / "set").iterdir()) == [tmp_path / "set" / "manifest.json"]


def test_statistics_may_be_left_out_or_estimated(tmp_path: Path, index: Index) -> None:
    path = make(tmp_path / "a.h5")
    index(path, statistics=False)
    manifest = load_manifest(tmp_path / "set")
    assert manifest.fields["x"].statistics is None and manifest.sampled is None
    assert manifest.fields["y"].classes == 5 and manifest.fields["x"].role == "feature"
    index(path, sample=0.1, overwrite=True)
    manifest = load_manifest(tmp_path / "set")
    statistics = manifest.fields["x"].statistics
    assert statistics is not None and manifest.sampled == 4
    rows = [0, 9, 18, 27]  # evenly spaced
    assert statistics.mean == pytest.approx(X[rows].astype(np.float64).mean(), rel=1e-12)
    assert manifest.fields["y"].classes == 5  # labels are counted in all samples


def test_missing_values_are_counted_and_left_out(tmp_path: Path, index: Index) -> None:
    x = X.copy()
    x[3, 0, :2], x[4, 1, 1], x[5, 2] = np.nan, -np.inf, 1e20
    path = make(tmp_path / "a.nc", x)
    with h5py.File(path, "r+") as file:
        file["fields/x"].attrs["_FillValue"] = np.array([1e20], np.float32)
    found = index(path)
    missing = found.missing["x"]
    assert (missing.nan, missing.infinite, missing.fill) == (2, 1, 4)
    assert (missing.samples, missing.good) == (3, 34)
    statistics = found.manifest.fields["x"].statistics
    good = np.delete(X, [3, 4, 5], axis=0).astype(np.float64)
    assert statistics is not None and statistics.mean == pytest.approx(good.mean(), rel=1e-12)
    (note,) = [text for text in found.notes if "NaN" in text]  # type: ignore[attr-defined]
    assert "2 NaN, 1 infinities, 4 fill values (1e+20) in 3 samples" in note
    loader = Loader(Reader(tmp_path / "set"), LaneSampler(37, 10))
    with pytest.raises(DataError, match=r"a.nc: sample 3 has 'x' = nan"):
        next(loader.epoch(0))


def test_a_field_without_a_good_sample_has_no_statistics(tmp_path: Path, index: Index) -> None:
    found = index(make(tmp_path / "a.h5", np.full_like(X, np.nan)))
    assert found.manifest.fields["x"].statistics is None
    assert found.manifest.fields["x"].role == "feature"


def test_chunks_that_are_not_stored_are_fill_values(tmp_path: Path, index: Index) -> None:
    """HDF5 stores chunks when they are written; between them a file may have none."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        x = file.create_dataset("x", (20, 3), "f4", chunks=(4, 3), fillvalue=7.0)
        x[4:8] = 1.0
        file["ballast"] = np.zeros((20, 100))  # for the file to be larger than x claims to be
    index(tmp_path / "a.h5", features=["x"])
    with Reader(tmp_path / "set") as reader:
        found = reader.read([(0, 20)])["x"]
    np.testing.assert_array_equal(found[:, 0], [7] * 4 + [1] * 4 + [7] * 12)


def test_many_files_with_few_open(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [make(tmp_path / f"{k}.h5", X + k, Y) for k in range(7)]
    index(*files)
    monkeypatch.setattr(reader_module, "MOST_OPEN", 2)
    with Reader(tmp_path / "set") as reader:
        for _ in range(2):
            found = reader.read([(0, 7 * 37)])["x"]
            np.testing.assert_array_equal(found, np.concatenate([X + k for k in range(7)]))
        assert len(reader._files) == 2


def test_names_of_fields(tmp_path: Path, index: Index) -> None:
    with h5py.File(tmp_path / "a.nc", "w") as file:
        for group in ("day", "night"):
            file[f"{group}/u"] = X
        file["target"], file["id"] = X[:, 0, 0], np.arange(37)
        file["time"] = np.arange(37.0)
        file["time"].make_scale("time")
    found = index(tmp_path / "a.nc")
    roles = {name: field.role for name, field in found.manifest.fields.items()}
    assert roles == {"day.u": "feature", "night.u": "feature", "target": "label"}
    found = index(tmp_path / "a.nc", features=["night/u"], labels=["/id"], overwrite=True)
    roles = {name: field.role for name, field in found.manifest.fields.items()}
    assert roles == {"u": "feature", "id": "label"}
    found = index(tmp_path / "a.nc", features=["time"], overwrite=True)
    assert list(found.manifest.fields) == ["time"]
    with pytest.raises(DataError, match="several datasets are named 'u'"):
        index(tmp_path / "a.nc", features=["u"], overwrite=True)
    with pytest.raises(DataError, match="no dataset 'v'"):
        index(tmp_path / "a.nc", features=["v"], overwrite=True)


def external(file: Any) -> None:
    file.create_dataset("z", (37, 2), "f4", external=[("/etc/passwd", 0, 37 * 8)])


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((37, 2), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (37, 2))
    file.create_virtual_dataset("z", layout)


def linked_group(file: Any) -> None:
    file["z"] = h5py.ExternalLink("other.h5", "/fields/x")


def soft(file: Any) -> None:
    file["z"] = h5py.SoftLink("/fields/x")


HOSTILE: dict[str, tuple[Callable[[Any], None], str]] = {
    "external storage": (external, "other files"),
    "a virtual dataset": (virtual, "other files"),
    "an external link": (linked_group, "a link to elsewhere"),
    "a soft link": (soft, "a link to elsewhere"),
    "texts": (lambda file: file.create_dataset("z", data=["a"] * 37), "does not hold numbers"),
    "references": (
        lambda file: file.create_dataset("z", (37,), h5py.ref_dtype),
        "does not hold numbers",
    ),
    "records": (lambda file: file.create_dataset("z", (37,), "f4,i4"), "does not hold numbers"),
    "complex numbers": (
        lambda file: file.create_dataset("z", (37,), "c8"),
        "does not hold numbers",
    ),
    "one number": (lambda file: file.create_dataset("z", data=1.0), "no first axis"),
    "samples beyond any memory": (
        lambda file: file.create_dataset("z", (37, 1 << 40), "f4", chunks=(1, 64), compression=1),
        "a sample has more than",
    ),
    "samples of nothing": (lambda file: file.create_dataset("z", (37, 0), "f4"), "its shape"),
    "another length": (lambda file: file.create_dataset("z", (36, 2), "f4"), "different lengths"),
    "more than the file has": (
        lambda file: file.create_dataset("z", (37, 10**9), "f4", chunks=(1, 10**6)),
        "truncated or forged",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_a_field(tmp_path: Path, index: Index, name: str) -> None:
    change, words = HOSTILE[name]
    path = make(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(DataError, match=words) as caught:
        index(path, features=["x", "z"])
    assert caught.value.remedy and not (tmp_path / "set").exists()


def test_links_that_lead_back_and_out(tmp_path: Path, index: Index) -> None:
    path = make(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["fields/loop"] = file["fields"]
        file["fields/top"] = file["/"]
        file["out"] = h5py.ExternalLink("b.h5", "/")
    found = index(path)
    assert list(found.manifest.fields) == ["y", "x"]
    change = edit_manifest(lambda tree: tree["shards"][0]["datasets"].update(x="out/fields/x"))
    change(tmp_path / "set")
    make(tmp_path / "b.h5")
    with pytest.raises(DataError, match="link to elsewhere"):
        Reader(tmp_path / "set")


def test_files_that_do_not_fit_together(tmp_path: Path, index: Index) -> None:
    one, other = make(tmp_path / "a.h5"), make(tmp_path / "b.h5", X.astype(np.float64))
    with pytest.raises(DataError, match=r"b.h5.*'x' is float64\[6, 4\] here, but float32"):
        index(one, other)
    with pytest.raises(DataError, match="is given twice"):
        index(one, one)
    with pytest.raises(DataError, match="negative value -1"):
        index(make(tmp_path / "c.h5", y=Y - 1))
    (tmp_path / "d.h5").write_bytes(b"no HDF5")
    with pytest.raises(DataError, match="not an HDF5 file"):
        index(tmp_path / "d.h5")


@pytest.mark.parametrize(
    ("key", "one", "other"),
    [("units", "K", "degC"), ("scale_factor", 0.5, 0.25), ("grid_mapping", "crs", None)],
)
def test_files_whose_numbers_mean_other_things(
    tmp_path: Path, index: Index, key: str, one: Any, other: Any
) -> None:
    files = [make(tmp_path / "a.nc"), make(tmp_path / "b.nc")]
    for path, value in zip(files, (one, other), strict=True):
        with h5py.File(path, "r+") as file:
            if value is not None:
                file["fields/x"].attrs[key] = value
    with pytest.raises(DataError, match=f"b.nc: {key} of 'x' is {other!r} here, but {one!r}"):
        index(*files)
    index(files[0])
    units = load_manifest(tmp_path / "set").fields["x"].units
    assert units == ("K" if key == "units" else None)


def test_only_a_data_set_is_replaced(tmp_path: Path, index: Index) -> None:
    path = make(tmp_path / "a.h5")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.tex").write_text("")
    with pytest.raises(DataError, match="is no data set"):
        index(path, overwrite=True)
    with pytest.raises(DataError, match="exists already"):
        index(path)


IMPOSSIBLE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a relative path": (lambda s: s.update(file="a.h5"), "not absolute"),
    "no time": (lambda s: s.update(mtime_ns=None), "lacks mtime_ns"),
    "no datasets": (lambda s: s.update(datasets=None), "lacks"),
    "a field without a dataset": (lambda s: s["datasets"].pop("x"), "are not those"),
    "a step that is none": (lambda s: s["datasets"].update(x="fields/./x"), "not the path"),
    "rows beyond the end": (lambda s: s.update(first=1), "manifest says"),
    "a negative row": (lambda s: s.update(first=-1), "first"),
    "another dataset": (lambda s: s["datasets"].update(x="y"), "manifest says"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_manifests(tmp_path: Path, index: Index, name: str) -> None:
    index(make(tmp_path / "a.h5"))
    change, words = IMPOSSIBLE[name]
    edit_manifest(lambda tree: change(tree["shards"][0]))(tmp_path / "set")
    with pytest.raises(DataError, match=words) as caught:
        Reader(tmp_path / "set")
    assert caught.value.remedy


def test_shards_of_mpidl_have_checksums(make_dataset: Any) -> None:
    folder, _ = make_dataset(20, 2)
    edit_manifest(lambda tree: tree["shards"][0].update(sha256=None))(folder)
    with pytest.raises(DataError, match="no SHA-256"):
        Reader(folder)


def test_the_sample_is_a_share(tmp_path: Path, index: Index) -> None:
    for share in (0.0, 1.5, math.nan):
        with pytest.raises(DataError, match="no share"):
            index(make(tmp_path / "a.h5"), sample=share)


def test_a_file_of_xarray(tmp_path: Path, index: Index) -> None:
    """Named axes, coordinates and packed numbers, as climate data have them."""
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    days = np.arange(37.0)
    data = xarray.Dataset(
        {
            "t2m": (("time", "lat", "lon"), X),
            "cloud": (("time", "lat", "lon"), (X > 3).astype(np.float64)),
            "storm": (("time",), (Y > 3).astype(np.int8)),
        },
        {"time": days, "lat": np.linspace(-60, 60, 6), "lon": np.arange(4.0)},
    )
    packed = {"dtype": "int16", "scale_factor": 0.5, "add_offset": 1.0, "_FillValue": -999}
    path = tmp_path / "climate.nc"
    data.to_netcdf(path, engine="h5netcdf", encoding={"cloud": packed, "t2m": {"zlib": True}})
    found = index(path, features=["t2m", "cloud"], labels=["storm"])
    assert found.manifest.fields["storm"].classes == 2
    with Reader(tmp_path / "set") as reader:
        arrays = reader.read([(0, 37)])
    np.testing.assert_array_equal(arrays["t2m"], X)
    np.testing.assert_array_equal(arrays["cloud"], np.where(X > 3, 0, -2))
    notes = found.notes  # type: ignore[attr-defined]
    assert any(text.startswith("cloud: stored as packed numbers") for text in notes)
    with pytest.raises(DataError, match=r"different lengths.*lat \(6\)"):
        index(path, features=["t2m", "lat"], overwrite=True)
    found = index(path, labels=["storm"], overwrite=True)  # without a name: all but coordinates
    assert set(found.manifest.fields) == {"t2m", "cloud", "storm"}
