"""NetCDF and Zarr, written by the libraries that people use."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidl.data.formats import detect_format, open_source
from mpidl.data.writer import WriteOptions, write_dataset
from mpidl.errors import DataError


def write_netcdf(path: Path, seed: int = 0, **changes: Any) -> np.ndarray:
    """Temperatures (time, lat, lon), packed into int16 with a scale; the exact values."""
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    packed = np.random.default_rng(seed).integers(-500, 500, (6, 3, 4))
    values = packed * 0.5 + 280
    if changes.get("gap"):
        values[4, 1, 1] = np.nan
    lat = np.array(changes.get("lat", [10.0, 20.0, 30.0]))
    held = xarray.Dataset(
        {
            "t": (("time", "lat", "lon"), values),
            "rain": (("lat", "time"), values[:, :, 0].T.astype(np.float32)),
            "crs": ((), 0),
        },
        {"lat": lat, "time": np.arange(6) + 6 * seed},
    )
    held["t"].attrs = {"units": changes.get("units", "K"), "grid_mapping": "crs"}
    held["rain"] = held["rain"].fillna(0)
    held["crs"].attrs = {"epsg_code": changes.get("epsg", "EPSG:4326")}
    packing = {"dtype": "int16", "scale_factor": 0.5, "add_offset": 280.0, "_FillValue": -32768}
    held.to_netcdf(path, engine="h5netcdf", encoding={"t": packing})
    return values


def test_netcdf_files_are_joined_and_decoded(tmp_path: Path, context: Any) -> None:
    paths = [tmp_path / "a.nc", tmp_path / "b.nc"]
    values = np.concatenate([write_netcdf(path, seed) for seed, path in enumerate(paths)])
    assert detect_format(paths[0]) == "netcdf"
    source = open_source(paths, "rain", dim="time", features=["t"])
    assert source.samples == 12
    for start, stop in ((0, 12), (4, 8), (6, 7), (3, 3)):
        arrays = source.read(start, stop)
        np.testing.assert_allclose(arrays["t"], values[start:stop], rtol=1e-6)
        np.testing.assert_allclose(arrays["rain"], values[start:stop, :, 0], rtol=1e-6)
    manifest = write_dataset(source, tmp_path / "set", WriteOptions(2), context, lambda count: None)
    field = manifest.fields["t"]
    assert (field.units, field.role, manifest.fields["rain"].role) == ("K", "feature", "label")
    assert list(open_source(paths[:1], variables="rain", dim="lat").read(0, 1)) == ["rain"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"units": "degC"}, "attribute 'units' 'degC', but 'K'"),
        ({"epsg": "EPSG:3857"}, "attribute 'epsg_code' of 'crs' 'EPSG:3857'"),
        ({"lat": [10.0, 20.0, 31.0]}, "grid 'lat'"),
    ],
)
def test_netcdf_files_that_disagree(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    write_netcdf(tmp_path / "a.nc")
    write_netcdf(tmp_path / "b.nc", **changes)
    with pytest.raises(DataError, match=words) as caught:
        open_source([tmp_path / "a.nc", tmp_path / "b.nc"])
    assert "b.nc" in caught.value.where and "a.nc" in caught.value.what


def test_netcdf_that_cannot_be_used(tmp_path: Path, context: Any) -> None:
    path = tmp_path / "a.nc"
    write_netcdf(path, gap=True)
    source = open_source([path], variables="t")
    with pytest.raises(DataError, match=r"'t' of sample 4 .* NaN"):
        write_dataset(source, tmp_path / "set", WriteOptions(1), context, lambda count: None)
    for options, words in (
        ({"variables": "wind"}, "no variable 'wind'"),
        ({"dim": "depth"}, "no dimension 'depth'"),
        ({"variables": "crs", "dim": "time"}, "'crs' is"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            open_source([path], **options)
        assert "a.nc" in caught.value.where
    (tmp_path / "cut.nc").write_bytes(path.read_bytes()[:900])
    with pytest.raises(DataError, match="is truncated") as torn:
        open_source([tmp_path / "cut.nc"])
    assert "cut.nc" in torn.value.where


def write_zarr(path: Path) -> np.ndarray:
    zarr = pytest.importorskip("zarr")
    x = np.random.default_rng(0).standard_normal((10, 4, 3)).astype(np.float32)
    group = zarr.open_group(str(path), mode="w")
    group.create_array("x", data=x, chunks=(4, 4, 3))
    group.create_array("label", data=np.arange(10) % 3 + 1, chunks=(5,))
    return x


def test_zarr(tmp_path: Path) -> None:
    x = write_zarr(tmp_path / "a.zarr")
    assert detect_format(tmp_path / "a.zarr") == "zarr"
    source = open_source([tmp_path / "a.zarr"])
    assert source.samples == 10 and source.notes == ()
    np.testing.assert_array_equal(source.read(3, 9)["x"], x[3:9])
    np.testing.assert_array_equal(source.read(3, 9)["label"], np.arange(3, 9) % 3 + 1)


def test_zarr_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    write_zarr(path)
    chunk = next((path / "x" / "c").rglob("0"))
    chunk = chunk if chunk.is_file() else next(p for p in (path / "x").rglob("*") if p.is_file())
    shutil.copytree(path, tmp_path / "lost.zarr")
    chunks = sorted(p for p in (path / "x" / "c").rglob("*") if p.is_file())
    (tmp_path / "lost.zarr" / chunks[0].relative_to(path)).unlink()
    assert "1 of 3 chunks of 'x'" in open_source([tmp_path / "lost.zarr"]).notes[0]
    chunks[-1].write_bytes(chunks[-1].read_bytes()[:9])
    with pytest.raises(DataError, match="cannot be read"):
        open_source([path]).read(0, 10)
    (path / "zarr.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        open_source([path])
    with pytest.raises(DataError, match="is no Zarr group"):
        open_source([tmp_path], format="zarr")
