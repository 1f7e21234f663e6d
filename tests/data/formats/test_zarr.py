"""Zarr groups that zarr and xarray write; chunks that are damaged, codecs that run code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidl.data.formats import detect_format, open_source
from mpidl.data.formats.source import Roles
from mpidl.errors import DataError
from tests.data.formats.test_netcdf import PACKINGS, changed, weather

zarr = pytest.importorskip("zarr")
xarray = pytest.importorskip("xarray")
pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata")


def save(path: Path, dataset: Any, version: int = 3, **encoding: Any) -> Path:
    dataset.to_zarr(path, mode="w", zarr_format=version, encoding=encoding)
    return path


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("name", ["plain", "int16", "int32", "float32 scaled"])
def test_values_are_those_of_xarray(tmp_path: Path, name: str, version: int) -> None:
    path = save(tmp_path / "a.zarr", weather(), version, T=PACKINGS[name])
    with xarray.open_zarr(path) as opened:
        expected = opened.load()
    source = open_source([path], Roles(("T",), ("rain",)))
    assert detect_format(path) == "zarr" and source.samples == 12
    for start, stop in ((0, 12), (3, 7), (4, 4)):
        found = source.read(start, stop)
        np.testing.assert_allclose(
            found["T"], expected["T"].values[start:stop], rtol=3e-7, equal_nan=False
        )
        np.testing.assert_array_equal(found["rain"], expected["rain"].values[start:stop])


@pytest.mark.parametrize("version", [2, 3])
def test_missing_values(tmp_path: Path, version: int) -> None:
    dataset = weather()
    dataset["T"][7, 1, 2] = np.nan
    for packing in (PACKINGS["int16"], {"_FillValue": -1e30}, {}):
        source = open_source(
            [save(tmp_path / "a.zarr", dataset, version, T=packing)], Roles(("T",))
        )
        assert np.argwhere(np.isnan(source.read(2, 12)["T"])).tolist() == [[5, 1, 2]]


@pytest.mark.parametrize("version", [2, 3])
def test_plain_arrays_and_shards(tmp_path: Path, version: int) -> None:
    """Without names of dimensions; zeros are zeros."""
    group = zarr.open_group(tmp_path / "a", mode="w", zarr_format=version)
    x = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    shards = {"shards": (8, 6)} if version == 3 else {}
    group.create_array("x", data=x * (x > 0), chunks=(4, 3), **shards)
    group.create_array("label", data=np.arange(20) % 3)
    source = open_source([tmp_path / "a"])
    np.testing.assert_array_equal(source.read(3, 17)["x"], (x * (x > 0))[3:17])
    assert source.read(3, 5)["label"].tolist() == [0, 1] and not source.notes


def test_several_groups(tmp_path: Path) -> None:
    paths = [save(tmp_path / "1.zarr", weather()), save(tmp_path / "2.zarr", weather(12, 5))]
    source = open_source(paths, Roles(("T",)))
    expected = np.concatenate([weather()["T"].values, weather(12, 5)["T"].values])
    np.testing.assert_array_equal(source.read(3, 17)["T"], expected[3:])
    other = save(tmp_path / "3.zarr", changed("T", units="degC"))
    with pytest.raises(DataError, match="'T' has units = 'degC'") as caught:
        open_source([*paths, other], Roles(("T",)))
    assert caught.value.where == str(other)


def test_chunks_without_a_file_are_noted(tmp_path: Path) -> None:
    path = save(tmp_path / "a.zarr", weather(), T={"chunks": (4, 4, 5)})
    (path / "T" / "c" / "1" / "0" / "0").unlink()
    assert "1 of 3 chunks of 'T'" in open_source([path]).notes[-1]
    assert np.isnan(open_source([path]).read(4, 8)["T"]).all()


def test_damage(tmp_path: Path) -> None:
    path = save(tmp_path / "a.zarr", weather())
    (path / "T" / "c" / "0" / "0" / "0").write_bytes(b"abc")
    source = open_source([path], Roles(("z",)))
    assert source.read(0, 2)["z"].shape == (2, 4, 5)
    with pytest.raises(DataError, match="cannot be read"):
        open_source([path]).read(0, 2)
    for content in ("{}", "", "[" * 2000, '{"zarr_format": 3, "node_type": "array"}'):
        (path / "zarr.json").write_text(content)
        with pytest.raises(DataError) as caught:
            open_source([path])
        assert caught.value.where == str(path) and caught.value.remedy
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        open_source([tmp_path / "empty.zarr"])
    (tmp_path / "file.zarr").write_text("x")
    with pytest.raises(DataError, match="is not a folder"):
        open_source([tmp_path / "file.zarr"], format="zarr")


@pytest.mark.parametrize(
    "filters", [[{"id": "pickle"}], [{"id": "shuffle"}, {"id": "pickle"}], [{"id": "json2"}]]
)
def test_codecs_that_run_code_are_refused(tmp_path: Path, filters: Any) -> None:
    path = save(tmp_path / "a.zarr", weather(), 2)
    about = json.loads((path / "T" / ".zarray").read_text())
    (path / "T" / ".zarray").write_text(json.dumps(about | {"filters": filters}))
    (path / ".zmetadata").unlink()
    with pytest.raises(DataError):
        open_source([path])


def test_a_chunk_that_fills_the_memory(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("x", shape=(1 << 40, 4), chunks=(1 << 40, 4), dtype="f4")
    with pytest.raises(DataError, match=r"chunks of .* bytes"):
        open_source([tmp_path / "a.zarr"])
