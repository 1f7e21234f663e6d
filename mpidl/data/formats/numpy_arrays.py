"""Arrays saved by NumPy: .npy files and .npz archives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mpidl.data.formats.source import (
    MALFORMED,
    Importer,
    Roles,
    Source,
    source_from_arrays,
    source_from_files,
    unusable,
)
from mpidl.registry import NoOptions

_SAVE_AGAIN = "save it again without objects: numpy.save or numpy.savez"


class NpyImporter(Importer):
    """One array a file, mapped into memory: the features, then the labels."""

    INPUT = ".npy files of one array each: the features, then the labels"
    SUFFIXES = (".npy",)
    SEVERAL_FILES = True

    @classmethod
    def open(cls, paths: Sequence[Path], roles: Roles, options: NoOptions) -> Source:
        """See `Importer.open`."""
        return source_from_files(
            paths, lambda path: np.lib.format.open_memmap(path, mode="r"), _SAVE_AGAIN
        )


class NpzImporter(Importer):
    """All arrays of one archive, read into memory; their names are those of the fields."""

    INPUT = "one .npz archive of arrays of equal length"
    SUFFIXES = (".npz",)

    @classmethod
    def open(cls, paths: Sequence[Path], roles: Roles, options: NoOptions) -> Source:
        """See `Importer.open`."""
        (path,) = paths
        try:
            archive = np.load(path, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it is no archive")  # but one array
            with archive:
                arrays = {name: archive[name] for name in archive.files}
        except MALFORMED as error:
            raise unusable(error, path, _SAVE_AGAIN) from error
        return source_from_arrays(arrays, str(path))
