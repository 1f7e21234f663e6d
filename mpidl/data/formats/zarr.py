"""Zarr stores: folders of chunked arrays.

Where all arrays name their dimensions, as xarray writes them, they are read as NetCDF files are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mpidl.data.formats.netcdf import VariableOptions, join_datasets
from mpidl.data.formats.source import Importer, Roles, Source, equal_lengths, unusable
from mpidl.data.manifest import Arrays
from mpidl.errors import DataError
from mpidl.extras import load_extra

_MARKS = ("zarr.json", ".zgroup")
_REMEDY = "write it again with zarr or xarray, as a group of arrays"
MAX_CHUNK = 1 << 32  # bytes
Group = dict[str, Any]  # name -> zarr array


class ZarrImporter(Importer):
    """The arrays at the top of a group, read piece by piece."""

    INPUT = "Zarr folders: arrays of equal length, or as of xarray (needs zarr, xarray)"
    SUFFIXES = (".zarr",)
    SEVERAL_FILES = True
    Options = VariableOptions

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """A folder that says so itself."""
        return path.is_dir() and any((path / name).is_file() for name in _MARKS)

    @classmethod
    def open(cls, paths: Sequence[Path], roles: Roles, options: VariableOptions) -> Source:
        """See `Importer.open`."""
        groups = [_open(path) for path in paths]
        if all(_dimensions(array) for group in groups for array in group.values()):
            return _labeled(paths, groups, roles, options)
        if len(paths) > 1 or options.dim or options.variables:
            raise DataError(
                "has arrays without names of their dimensions",
                where=str(paths[-1]),
                remedy="write it by xarray; or shard each group on its own, without --dim and "
                "--variables",
            )
        return _plain(paths[0], groups[0])


def _open(path: Path) -> Group:
    """The arrays at the top of a group.

    Raises:
        DataError: It is no such group, or a chunk would fill the memory.
    """
    zarr = load_extra("zarr", "reading Zarr")
    if not ZarrImporter.accepts(path):
        raise DataError("is no Zarr group", where=str(path), remedy=_REMEDY)
    try:
        arrays: Group = dict(sorted(zarr.open_group(str(path), mode="r").arrays()))
    except Exception as error:  # codecs and stores raise their own
        raise unusable(error, path, _REMEDY) from error
    for name, array in arrays.items():
        size = math.prod(array.chunks) * np.dtype(array.dtype).itemsize
        if size > MAX_CHUNK:
            raise DataError(
                f"array {name!r} has chunks of {size:,} bytes, which are read as a whole",
                where=str(path),
                remedy=f"write it again with chunks of at most {MAX_CHUNK:,} bytes",
            )
    return arrays


def _dimensions(array: Any) -> bool:
    """Whether an array names its dimensions, in either format of Zarr."""
    names = getattr(array.metadata, "dimension_names", None)
    if names is None:
        names = array.attrs.get("_ARRAY_DIMENSIONS")
    return not array.shape or (
        isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    )


def _labeled(
    paths: Sequence[Path], groups: Sequence[Group], roles: Roles, options: VariableOptions
) -> Source:
    """The samples of groups that xarray wrote."""
    xarray = load_extra("xarray", "reading Zarr groups of xarray")
    opened = []
    for path in paths:
        try:
            opened.append(xarray.open_dataset(path, engine="zarr", decode_times=False, cache=False))
        except Exception as error:
            raise unusable(error, path, _REMEDY) from error
    source = join_datasets(paths, opened, roles, options)
    notes = [note for group in groups for note in _missing(group)]
    return replace(source, notes=(*source.notes, *notes))


def _plain(path: Path, arrays: Group) -> Source:
    """The samples of arrays of equal length."""
    samples = equal_lengths({n: a.shape for n, a in arrays.items()}, str(path))

    def read(start: int, stop: int) -> Arrays:
        try:
            return {name: np.asarray(array[start:stop]) for name, array in arrays.items()}
        except Exception as error:
            raise unusable(error, path, _REMEDY) from error

    return Source(samples, read, notes=_missing(arrays))


def _missing(arrays: Group) -> tuple[str, ...]:
    """Zarr reads chunks that are absent as the fill value: lost or never written looks the same."""
    return tuple(
        f"{array.nchunks - array.nchunks_initialized} of {array.nchunks} chunks of {name!r} are "
        f"absent and read as {array.fill_value}"
        for name, array in arrays.items()
        if array.shape and array.nchunks_initialized < array.nchunks
    )
