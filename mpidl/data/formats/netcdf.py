"""NetCDF 4 files, which are HDF5 files with named dimensions; read by h5py alone.

xarray with h5netcdf would read them by the same h5py, but bring pandas, and follow links out of the
file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpidl.data.formats.cf import Store, Variable, plain, source_from_stores
from mpidl.data.formats.source import Importer, Roles, Source
from mpidl.data.hdf5 import open_file, trusted_dataset
from mpidl.errors import DataError
from mpidl.files import reading
from mpidl.options import Section

CLASSIC = (b"CDF\x01", b"CDF\x02", b"CDF\x05")
NO_VARIABLE = b"This is a netCDF dimension but not a netCDF variable"


class NetcdfImporter(Importer):
    """Variables at the top of files, samples along one dimension; files one after the other."""

    INPUT = "NetCDF 4 files with CF attributes: variables along the dimension of the samples"
    SUFFIXES = (".nc", ".nc4", ".netcdf")
    SEVERAL_FILES = True

    class Options(Section, frozen=True):
        """Where samples are.

        Attributes:
            dim: The dimension of the samples (default: the first one of the variables).
        """

        dim: str | None = None

    @classmethod
    def open(cls, paths: Sequence[Path], roles: Roles, options: Options) -> Source:
        """See `Importer.open`."""
        return source_from_stores(paths, _load, roles, options.dim)


def _load(path: Path) -> Store:
    with reading(path):
        with open(path, "rb") as raw:
            if raw.read(4) in CLASSIC:
                raise DataError(
                    "is a NetCDF 3 file",
                    where=str(path),
                    remedy="convert it: nccopy -k netCDF-4 in.nc out.nc",
                )
        file = open_file(path)
        variables = {}
        for name in file:
            if _is_dataset(file, name):
                dataset = trusted_dataset(file, name, path)
                if not bytes(_attribute(dataset, "NAME")).startswith(NO_VARIABLE):
                    variables[name] = _variable(name, dataset, path)
        return Store(path, variables, {key: plain(value) for key, value in file.attrs.items()})


def _is_dataset(file: Any, name: str) -> bool:
    """Whether this is no group; links are not followed, but refused by `trusted_dataset`."""
    link = file.get(name, getclass=True, getlink=True).__name__
    return bool(link != "HardLink" or file.get(name, getclass=True).__name__ == "Dataset")


def _attribute(dataset: Any, name: str) -> bytes:
    value = plain(dataset.attrs.get(name, ""))
    return value.encode() if isinstance(value, str) else b""


def _variable(name: str, dataset: Any, path: Path) -> Variable:
    attributes = {
        key: plain(value)
        for key, value in dataset.attrs.items()
        if key not in ("DIMENSION_LIST", "REFERENCE_LIST")
    }

    def read(where: tuple[slice, ...]) -> Any:
        with reading(path):
            return dataset[where]

    return Variable(name, _dims(name, dataset), dataset.shape, dataset.dtype, attributes, read)


def _dims(name: str, dataset: Any) -> tuple[str, ...] | None:
    """Names of the dimensions, None where one has none."""
    if dataset.is_scale and len(dataset.shape) == 1:
        return (name,)
    found = []
    for dim in dataset.dims:
        scales = list(dim.values())
        if not scales:
            return None
        found.append(str(scales[0].name).rpartition("/")[2])
    return tuple(found)
