"""NetCDF files that xarray writes are read as xarray reads them; files that differ are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidl.data import Reader
from mpidl.data.formats import open_source
from mpidl.data.formats.source import Roles
from mpidl.data.hdf5 import h5py
from mpidl.data.writer import WriteOptions, write_dataset
from mpidl.errors import DataError

xarray = pytest.importorskip("xarray")
CRS = {"grid_mapping_name": "latitude_longitude", "earth_radius": 6371000.0}


def weather(first: int = 0, days: int = 12, **changes: Any) -> Any:
    """Temperatures (time, lat, lon) in kelvin, a static mask, and what CF files have beside."""
    rng = np.random.default_rng(first)
    attributes = {"units": "K", "grid_mapping": "crs", "standard_name": "air_temperature"}
    variables = {
        "T": (("time", "lat", "lon"), rng.uniform(250, 300, (days, 4, 5)), attributes),
        "z": (("time", "lat", "lon"), rng.normal(size=(days, 4, 5)).astype(np.float32)),
        "rain": (("time",), rng.normal(size=days)),
        "mask": (("lat", "lon"), np.ones((4, 5), np.int8)),
        "crs": ((), 0, CRS),
    }
    coordinates = {
        "time": ("time", np.arange(first, first + days), {"units": "days since 2000-01-01"}),
        "lat": np.linspace(40, 50, 4),
        "lon": np.arange(5.0),
    }
    return xarray.Dataset(variables | changes, coords=coordinates)


def save(path: Path, dataset: Any, **encoding: Any) -> Path:
    dataset.to_netcdf(path, engine="h5netcdf", encoding=encoding)
    return path


PACKINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "int16": {"dtype": "i2", "scale_factor": 0.001, "add_offset": 275.0, "_FillValue": -32768},
    "int32": {"dtype": "i4", "scale_factor": 1e-6, "_FillValue": -1},
    "unsigned": {"dtype": "u1", "scale_factor": 0.25, "add_offset": 245.0},
    "unsigned of old": {
        "dtype": "i1",
        "_Unsigned": "true",
        "scale_factor": 0.25,
        "add_offset": 245.0,
        "_FillValue": -1,
    },
    "float32 scaled": {"dtype": "f4", "scale_factor": 10.0},
    "chunks": {"chunksizes": (5, 2, 5), "zlib": True},
    "big endian": {"dtype": ">f4"},
}


@pytest.mark.parametrize("name", PACKINGS)
def test_values_are_those_of_xarray(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "a.nc", weather(), T=PACKINGS[name])
    expected = xarray.load_dataset(path, engine="h5netcdf")  # HDF5 opens a file in one way at once
    source = open_source([path], Roles(("T",), ("rain",)))
    for start, stop in ((0, 12), (3, 7), (11, 12), (4, 4)):
        found = source.read(start, stop)
        assert list(found) == ["T", "rain"] and found["T"].flags.c_contiguous
        np.testing.assert_allclose(
            found["T"], expected["T"].values[start:stop], rtol=3e-7, equal_nan=False
        )
        np.testing.assert_array_equal(found["rain"], expected["rain"].values[start:stop])
    small = np.dtype(PACKINGS[name].get("dtype", "f8")).itemsize <= 2 or "f4" in str(PACKINGS[name])
    assert found["T"].dtype == (np.float32 if small else np.float64)


def test_variables_along_the_samples_are_found(tmp_path: Path) -> None:
    """Not coordinates, grid mappings and static fields."""
    path = save(tmp_path / "a.nc", weather())
    source = open_source([path])
    assert set(source.read(0, 1)) == {"T", "z", "rain"} and source.samples == 12
    assert source.notes == ("left out, being no numbers along 'time': mask",)
    turned = open_source([path], Roles(("z",)), dim="lat")
    assert turned.samples == 4
    np.testing.assert_array_equal(
        turned.read(1, 3)["z"], weather()["z"].values.transpose(1, 0, 2)[1:3]
    )
    assert set(open_source([path], dim="lat").read(0, 1)) == {"T", "z", "mask"}


def test_several_files_from_the_command_to_the_reader(tmp_path: Path, context: Any) -> None:
    """Each with a packing of its own."""
    paths = []
    for first, days in ((0, 12), (12, 1), (13, 7)):
        packing = {"dtype": "i2", "scale_factor": 0.001 + first / 1e5, "add_offset": 275.0}
        paths.append(save(tmp_path / f"{first:02d}.nc", weather(first, days), T=packing))
    parts = [xarray.load_dataset(path, engine="h5netcdf") for path in paths]
    expected = xarray.concat(parts, "time", data_vars="minimal", coords="minimal", compat="equals")
    source = open_source(paths, Roles(("T",), ("z",)))
    assert source.samples == 20
    write_dataset(source, tmp_path / "set", WriteOptions(3), context, lambda count: None)
    with Reader(tmp_path / "set") as reader:
        found = reader.read([(0, 20)])
        assert reader.fields["z"].role == "label" and reader.fields["z"].statistics is not None
    np.testing.assert_allclose(found["T"], expected["T"].values, rtol=1e-6)
    np.testing.assert_array_equal(found["z"], expected["z"].values)


def changed(name: str, **attributes: Any) -> Any:
    dataset = weather(12)
    dataset[name].attrs.update(attributes)
    return dataset


DIFFERENT: dict[str, tuple[Any, str]] = {
    "units": (lambda: changed("T", units="degC"), r"'T' has units = 'degC', where .* has 'K'"),
    "quantity": (lambda: changed("T", standard_name="dew_point"), "has standard_name = "),
    "grid": (lambda: changed("crs", earth_radius=6378137.0), "'crs' has earth_radius = 6378137"),
    "coordinate": (
        lambda: weather(12).assign_coords(lat=np.linspace(40, 51, 4)),
        "'lat' has other values",
    ),
    "units of a coordinate": (lambda: changed("lat", units="m"), "'lat' has units = 'm'"),
    "global CRS": (lambda: weather(12).assign_attrs(crs="EPSG:4326"), "crs = 'EPSG:4326'"),
    "shape": (lambda: weather(12).isel(lon=slice(4)), r"'T' has shape = \(4, 4\), where"),
    "dimensions": (lambda: weather(12).transpose("time", "lon", "lat"), "'T' has dimensions = "),
    "dtype": (lambda: weather(12).astype(np.float32), "'T' has dtype = 'float32'"),
    "variable": (lambda: weather(12).drop_vars("T"), "has no variable 'T', which"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_files_that_differ(tmp_path: Path, name: str) -> None:
    make, words = DIFFERENT[name]
    paths = [save(tmp_path / "1.nc", weather()), save(tmp_path / "2.nc", make())]
    with pytest.raises(DataError, match=words) as caught:
        open_source(paths, Roles(("T",)))
    assert caught.value.where == str(paths[1]) and caught.value.remedy


WRONG: dict[str, tuple[Roles, dict[str, Any], str]] = {
    "no such variable": (Roles(("Q",)), {}, "no variable 'Q'; its variables are .*T"),
    "no such label": (Roles(("T",), ("Q",)), {}, "--label"),
    "no such dimension": (Roles(), {"dim": "level"}, "along 'level'; .* lat, lon, time"),
    "another dimension": (Roles(("T", "mask")), {}, "'mask' does not lie along 'time'"),
    "a scalar": (Roles(("crs",)), {}, "does not lie along"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_choices(tmp_path: Path, name: str) -> None:
    roles, options, words = WRONG[name]
    path = save(tmp_path / "a.nc", weather())
    with pytest.raises(DataError, match=words) as caught:
        open_source([path], roles, **options)
    assert caught.value.where == str(path) and caught.value.remedy


def test_missing_values(tmp_path: Path, context: Any) -> None:
    """As NaN to the writer, which names the sample; whole numbers have none."""
    dataset = weather()
    dataset["T"][7, 1, 2] = np.nan
    paths = [save(tmp_path / "1.nc", weather()), tmp_path / "2.nc"]
    save(paths[1], dataset, T=PACKINGS["int16"])
    with pytest.raises(DataError, match="'T' has dtype"):
        open_source(paths, Roles(("T",)))
    source = open_source(paths[1:], Roles(("T",)))
    assert np.argwhere(np.isnan(source.read(2, 12)["T"])).tolist() == [[5, 1, 2]]
    with pytest.raises(DataError, match="'T' of sample 7 of the source holds a NaN"):
        write_dataset(source, tmp_path / "set", WriteOptions(3), context, lambda count: None)
    with h5py.File(tmp_path / "3.nc", "w") as file:
        file["n"] = np.array([3, 4, -9, 4, -8], np.int16)
        file["n"].attrs["_FillValue"] = np.array([-9], np.int16)
        file["m"] = np.zeros(5, np.float32)
        file["m"].attrs["missing_value"] = 0.0
    source = open_source([tmp_path / "3.nc"])
    with pytest.raises(DataError, match=r"'n' has missing values \(_FillValue\) in sample 2"):
        source.read(1, 5)
    assert source.read(3, 5)["n"].dtype == np.int16 and np.isnan(source.read(3, 5)["m"]).all()


@pytest.mark.parametrize("value", ["a", np.nan, [1.0, 2.0], np.inf])
def test_packing_that_is_no_number(tmp_path: Path, value: Any) -> None:
    with h5py.File(tmp_path / "a.nc", "w") as file:
        file["n"] = np.zeros(5, np.int16)
        file["n"].attrs["scale_factor"] = value
    with pytest.raises(DataError, match="the attribute scale_factor of 'n' is"):
        open_source([tmp_path / "a.nc"])


def test_what_leads_out_of_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nc", weather())
    with h5py.File(path, "r+") as file:
        file["secret"] = h5py.ExternalLink("/etc/passwd", "/x")
    with pytest.raises(DataError, match="a link to elsewhere"):
        open_source([path])
    with h5py.File(tmp_path / "b.nc", "w") as file:
        file.create_dataset("x", (10,), "f4", external=[("/etc/passwd", 0, 40)])
    with pytest.raises(DataError, match="keeps its data in other files"):
        open_source([tmp_path / "b.nc"])


def test_damaged_and_old_files(tmp_path: Path) -> None:
    (tmp_path / "old.nc").write_bytes(b"CDF\x01" + bytes(100))
    with pytest.raises(DataError, match="NetCDF 3") as caught:
        open_source([tmp_path / "old.nc"])
    assert "nccopy" in caught.value.remedy
    whole = save(tmp_path / "a.nc", weather()).read_bytes()
    bad = tmp_path / "b.nc"
    for content in (b"", b"x" * 2000, whole[:-50], whole[: len(whole) // 2]):
        bad.write_bytes(content)
        with pytest.raises(DataError) as caught:
            open_source([bad])
        assert caught.value.where == str(bad) and caught.value.remedy
    with h5py.File(bad, "w") as file:
        file.create_group("only a group")
    with pytest.raises(DataError, match="no variables"):
        open_source([bad])
    for size in np.linspace(8, len(whole) - 1, 40).astype(int):
        bad.write_bytes(whole[:size])
        with pytest.raises(DataError):
            open_source([bad]).read(0, 1)
