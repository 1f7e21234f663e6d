"""NetCDF and Zarr as xarray writes them are read as xarray reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidl.data.formats import open_source
from mpidl.data.hdf5 import h5py
from mpidl.data.writer import WriteOptions, write_dataset
from mpidl.errors import DataError

xarray = pytest.importorskip("xarray")
pytestmark = [
    pytest.mark.filterwarnings("ignore:Consolidated metadata"),
    pytest.mark.filterwarnings("ignore:saving variable"),
]
CRS = {"grid_mapping_name": "latitude_longitude", "earth_radius": 6371000.0}


def weather(first: int = 0, days: int = 12, **attributes: Any) -> Any:
    """Temperatures (time, lat, lon) in kelvin, and what CF files have beside."""
    rng = np.random.default_rng(first)
    about = {"units": "K", "grid_mapping": "crs", "standard_name": "air_temperature"}
    variables = {
        "T": (("time", "lat", "lon"), rng.uniform(250, 300, (days, 4, 5)), about | attributes),
        "z": (("lon", "time"), rng.normal(size=(5, days)).astype(np.float32)),
        "rain": (("time",), rng.normal(size=days)),
        "mask": (("lat", "lon"), np.ones((4, 5), np.int8)),
        "crs": ((), 0, CRS),
    }
    coordinates = {
        "time": ("time", np.arange(first, first + days), {"units": "days since 2000-01-01"}),
        "lat": np.linspace(40, 50, 4),
        "lon": np.arange(5.0),
    }
    return xarray.Dataset(variables, coords=coordinates)


def save(path: Path, dataset: Any, **encoding: Any) -> Path:
    """As NetCDF, or as a group of Zarr (.v2.zarr: of format 2)."""
    if path.suffix == ".nc":
        dataset.to_netcdf(path, engine="h5netcdf", encoding=encoding)
        return path
    pytest.importorskip("zarr")
    version = 2 if path.name.endswith(".v2.zarr") else 3
    dataset.to_zarr(path, mode="w", zarr_format=version, encoding=encoding)
    return path


PACKINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "int16": {"dtype": "i2", "scale_factor": 0.001, "add_offset": 275.0, "_FillValue": -32768},
    "int32": {"dtype": "i4", "scale_factor": 1e-6, "_FillValue": -1},
    "float32 scaled": {"dtype": "f4", "scale_factor": 10.0},
}
SUFFIXES = (".nc", ".zarr", ".v2.zarr")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", PACKINGS)
def test_packed_values(tmp_path: Path, name: str, suffix: str) -> None:
    path = save(tmp_path / f"a{suffix}", weather(), T=PACKINGS[name])
    source = open_source([path], ["z"], features=["T"])
    assert list(source.read(0, 1)) == ["T", "z"], "no more than what is named is read"
    for start, stop in ((0, 12), (3, 7), (4, 4)):
        found = source.read(start, stop)
        np.testing.assert_allclose(found["T"], weather()["T"].values[start:stop], rtol=1e-5)
        np.testing.assert_array_equal(found["z"], weather()["z"].values.T[start:stop])
    turned = open_source([path], features=["mask"], dim="lon").read(1, 3)["mask"]
    np.testing.assert_array_equal(turned, np.ones((2, 4)))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_values_are_refused_by_their_sample(
    tmp_path: Path, suffix: str, context: Any
) -> None:
    dataset = weather()
    dataset["T"][7, 1, 2] = np.nan
    path = save(tmp_path / f"a{suffix}", dataset, T=PACKINGS["int16"])
    source = open_source([path], features=["T"])
    with pytest.raises(DataError, match="'T' of sample 7 of the source holds a NaN"):
        write_dataset(source, tmp_path / "set", WriteOptions(3), context, lambda count: None)


@pytest.mark.parametrize("suffix", (".nc", ".zarr"))
def test_several_stores(tmp_path: Path, suffix: str) -> None:
    paths = [
        save(tmp_path / f"1{suffix}", weather()),
        save(tmp_path / f"2{suffix}", weather(12, 5)),
    ]
    expected = np.concatenate([weather()["T"].values, weather(12, 5)["T"].values])
    source = open_source(paths, features=["T"])
    np.testing.assert_array_equal(source.read(3, 17)["T"], expected[3:])
    for attributes in ({"units": "degC"}, {"standard_name": "dew_point"}, {"cell_methods": "x"}):
        other = save(tmp_path / f"{next(iter(attributes))}{suffix}", weather(**attributes))
        with pytest.raises(DataError, match=f"attribute '{next(iter(attributes))}'") as caught:
            open_source([*paths, other], features=["T"])
        assert caught.value.where == str(other)


def test_links_out_of_a_file_are_not_followed(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nc", weather())
    with h5py.File(path, "r+") as file:
        file["secret"] = h5py.ExternalLink("/etc/passwd", "/x")
    with pytest.raises(DataError, match="'secret' is a link to elsewhere"):
        open_source([path])


def test_groups_without_names_of_dimensions(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    paths = [tmp_path / "1.zarr", tmp_path / "2.zarr"]
    for path in paths:
        zarr.open_group(path, mode="w").create_array("x", data=np.ones((4, 2)))
    assert open_source(paths[:1]).samples == 4
    with pytest.raises(DataError, match="without names of their dimensions"):
        open_source(paths)
    group = zarr.open_group(tmp_path / "3.zarr", mode="w")
    group.create_array("x", shape=(1 << 40, 4), chunks=(1 << 40, 4), dtype="f4")
    with pytest.raises(DataError, match=r"chunks of .* bytes"):
        open_source([tmp_path / "3.zarr"])


@pytest.mark.parametrize("filters", [[{"id": "pickle"}], [{"id": "shuffle"}, {"id": "pickle"}]])
def test_codecs_that_run_code_are_refused(tmp_path: Path, filters: Any) -> None:
    path = save(tmp_path / "a.v2.zarr", weather())
    about = path / "T" / ".zarray"
    about.write_text(
        about.read_text().replace('"filters": null', f'"filters": {filters}'.replace("'", '"'))
    )
    (path / ".zmetadata").unlink()
    assert "pickle" in about.read_text()
    with pytest.raises(DataError, match="cannot be read"):
        open_source([path])
