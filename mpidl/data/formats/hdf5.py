"""HDF5 files of users."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mpidl.data.formats.source import Importer, Roles, Source, source_from_arrays
from mpidl.data.hdf5 import open_file, trusted_dataset
from mpidl.files import reading
from mpidl.registry import NoOptions


class Hdf5Importer(Importer):
    """The datasets at the top of one file, read piece by piece."""

    INPUT = "one HDF5 file with datasets of equal length at its top"
    SUFFIXES = (".h5", ".hdf5", ".hdf")

    @classmethod
    def open(cls, paths: Sequence[Path], roles: Roles, options: NoOptions) -> Source:
        """See `Importer.open`."""
        (path,) = paths
        with reading(path):
            file = open_file(path)
            datasets = {name: trusted_dataset(file, name, path) for name in file}
        return source_from_arrays(datasets, str(path))
