"""NetCDF-4 files with CF names: packed and missing values decoded, files joined along one axis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpidl.data.formats.source import Importer, Roles, Source, concatenated
from mpidl.data.hdf5 import LOCKING, open_file, trusted_dataset
from mpidl.data.manifest import Arrays
from mpidl.errors import DataError
from mpidl.extras import load_extra
from mpidl.files import COPY, read_error, reading
from mpidl.options import Section

# Attributes of a variable
_AGREE = ("units", "standard_name", "cell_methods", "grid_mapping", "calendar", "positive")
_GLOBAL = ("crs", "projection")


class VariableOptions(Section, frozen=True):
    """How to read variables.

    Attributes:
        dim: The dimension of the samples (default: the first one of the first variable).
        variables: Names of the variables to read, separated by commas (default: those of --feature
            and --label; without features all that have the dimension of the samples).
    """

    dim: str | None = None
    variables: str | None = None


class NetcdfImporter(Importer):
    """The variables that have the dimension of the samples; missing values become NaN."""

    INPUT = "NetCDF-4 files, joined along the dimension of their samples (needs xarray, h5netcdf)"
    SUFFIXES = (".nc", ".nc4")
    SEVERAL_FILES = True

    Options = VariableOptions

    @classmethod
    def open(cls, paths: Sequence[Path], roles: Roles, options: VariableOptions) -> Source:
        """See `Importer.open`."""
        return join_datasets(paths, [_open(path) for path in paths], roles, options)


def join_datasets(
    paths: Sequence[Path], opened: Sequence[Any], roles: Roles, options: VariableOptions
) -> Source:
    """The samples of xarray datasets, one behind the other.

    Args:
        paths: Where they are from, for messages.
        opened: The datasets.
        roles: Names of features and labels, where the user gives some.
        options: Which variables, and along which dimension.

    Raises:
        DataError: A variable is missing, or they differ in what must be the same.
    """
    wanted = [name.strip() for name in (options.variables or "").split(",") if name.strip()]
    if not wanted and roles.features:
        wanted = [*roles.features, *roles.labels]
    dim = options.dim or _first_dimension(opened[0], paths[0], wanted)
    names = wanted or [name for name, each in opened[0].items() if dim in each.dims]
    for path, dataset in zip(paths, opened, strict=True):
        _check(path, dataset, dim, names)
        _agree((paths[0], opened[0]), (path, dataset), names, dim)
    units = {
        name: str(opened[0][name].attrs["units"])[:200]
        for name in names
        if "units" in opened[0][name].attrs
    }
    parts = [_part(path, each, dim, names) for path, each in zip(paths, opened, strict=True)]
    return concatenated(parts, units)


def _open(path: Path) -> Any:
    xarray = load_extra("xarray", "reading NetCDF")
    load_extra("h5netcdf", "reading NetCDF")
    with reading(path, COPY), open_file(path) as file:
        for name in file:
            if file.get(name, getclass=True, getlink=True).__name__ != "HardLink" or hasattr(
                file[name], "dtype"
            ):
                trusted_dataset(file, name, path)  # no data in other files, and no links to them
    try:
        # HDF5 refuses to open a file twice with different locking: as in `open_file`
        return xarray.open_dataset(
            path,
            engine="h5netcdf",
            decode_times=False,
            cache=False,
            driver_kwds={"locking": False} if LOCKING else None,
        )
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise read_error(error, path) from error


def _first_dimension(dataset: Any, path: Path, wanted: Sequence[str]) -> str:
    for name in wanted or dataset:
        if name not in dataset:
            raise _no_variable(path, dataset, name)
        if dataset[name].dims:
            return str(dataset[name].dims[0])
    raise DataError(
        "has no variable with dimensions", where=str(path), remedy="check the file, or --variables"
    )


def _no_variable(path: Path, dataset: Any, name: str) -> DataError:
    return DataError(
        f"has no variable {name!r}, only {', '.join(map(str, dataset))}",
        where=str(path),
        remedy="name others with --variables",
    )


def _check(path: Path, dataset: Any, dim: str, names: Sequence[str]) -> None:
    """Refuse variables that are missing, without samples, or no numbers."""
    if dim not in dataset.dims:
        raise DataError(
            f"has no dimension {dim!r}, only {', '.join(map(str, dataset.dims))}",
            where=str(path),
            remedy="name the dimension of the samples with --dim",
        )
    for name in names:
        if name not in dataset:
            raise _no_variable(path, dataset, name)
        if dim not in dataset[name].dims or dataset[name].dtype.kind not in "biuf":
            raise DataError(
                f"variable {name!r} is {dataset[name].dtype}{list(dataset[name].dims)}: samples "
                f"are numbers with the dimension {dim!r}",
                where=str(path),
                remedy="name the variables with --variables, their dimension with --dim",
            )


def _described(dataset: Any, name: str, dim: str) -> dict[str, str]:
    """What must be the same in all files of a variable, in words."""
    variable = dataset[name]
    found = {f"attribute {key!r}": repr(variable.attrs.get(key)) for key in _AGREE}
    # xarray moves this one where it decodes it
    mapping = variable.attrs.get("grid_mapping", variable.encoding.get("grid_mapping"))
    found["attribute 'grid_mapping'"] = repr(mapping)
    if mapping in dataset.variables:
        attributes = dataset[mapping].attrs
        for key in sorted(attributes):
            found[f"attribute {key!r} of {mapping!r}"] = repr(attributes[key])
    for key in _GLOBAL:
        found[f"global attribute {key!r}"] = repr(dataset.attrs.get(key))
    sizes = {key: size for key, size in variable.sizes.items() if key != dim}
    return found | {"dtype": str(variable.dtype), "sizes": str(sizes)}


def _agree(
    reference: tuple[Path, Any], compared: tuple[Path, Any], names: Sequence[str], dim: str
) -> None:
    """Refuse a file whose units, grid or coordinate reference system are others."""
    (first, one), (path, other) = reference, compared
    for name in names:
        wanted, found = _described(one, name, dim), _described(other, name, dim)
        for key in sorted({*wanted, *found}):
            if wanted.get(key) != found.get(key):
                raise DataError(
                    f"variable {name!r} has the {key} {found.get(key)}, but {wanted.get(key)} in "
                    f"{first}",
                    where=str(path),
                    remedy="convert the files to the same units and grid, or shard them apart",
                )
        for axis in one[name].dims:
            grids = [each[axis].values for each in (one, other) if axis in each[name].coords]
            if axis != dim and (len(grids) == 1 or (grids and not np.array_equal(*grids))):
                raise DataError(
                    f"the grid {axis!r} of variable {name!r} differs from that in {first}",
                    where=str(path),
                    remedy="interpolate the files to one grid, or shard them apart",
                )


def _part(path: Path, dataset: Any, dim: str, names: Sequence[str]) -> Source:
    def read(start: int, stop: int) -> Arrays:
        try:
            cut = dataset[list(names)].isel({dim: slice(start, stop)})
            return {
                name: np.ascontiguousarray(cut[name].transpose(dim, ...).values) for name in names
            }
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:  # also of codecs
            raise read_error(error, path) from error

    return Source(int(dataset.sizes[dim]), read)
