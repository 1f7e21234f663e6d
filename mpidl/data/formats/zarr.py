"""Zarr stores: folders of chunked arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpidl.data.formats.source import Importer, Roles, Source, unusable
from mpidl.data.manifest import Arrays
from mpidl.errors import DataError
from mpidl.extras import load_extra
from mpidl.registry import NoOptions

_MARKS = ("zarr.json", ".zgroup")


class ZarrImporter(Importer):
    """The arrays at the top of a group, read piece by piece."""

    INPUT = "a Zarr folder with arrays of equal length at its top (needs zarr)"
    SUFFIXES = (".zarr",)

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """A folder that says so itself."""
        return path.is_dir() and any((path / name).is_file() for name in _MARKS)

    @classmethod
    def open(cls, paths: Sequence[Path], roles: Roles, options: NoOptions) -> Source:
        """See `Importer.open`."""
        (path,) = paths
        zarr = load_extra("zarr", "reading Zarr")
        remedy = "write it again with zarr, as a group of arrays"
        if not cls.accepts(path):
            raise DataError("is no Zarr group", where=str(path), remedy=remedy)
        try:
            arrays: dict[str, Any] = dict(zarr.open_group(str(path), mode="r").arrays())
        except Exception as error:  # codecs and stores raise their own
            raise unusable(error, path, remedy) from error
        notes = _missing(arrays)
        counts = {name: array.shape[0] if array.ndim else -1 for name, array in arrays.items()}
        if not counts or len(set(counts.values())) != 1 or min(counts.values()) < 0:
            raise DataError(
                f"the arrays have different numbers of samples: {counts}",
                where=str(path),
                remedy="make them equal",
            )

        def read(start: int, stop: int) -> Arrays:
            try:
                return {name: np.asarray(array[start:stop]) for name, array in arrays.items()}
            except Exception as error:
                raise unusable(error, path, remedy) from error

        return Source(next(iter(counts.values())), read, notes=notes)


def _missing(arrays: dict[str, Any]) -> tuple[str, ...]:
    """Zarr reads chunks that are absent as the fill value: lost or never written looks the same."""
    return tuple(
        f"{array.nchunks - array.nchunks_initialized} of {array.nchunks} chunks of {name!r} are "
        f"absent and read as {array.fill_value}"
        for name, array in arrays.items()
        if array.nchunks_initialized < array.nchunks
    )
