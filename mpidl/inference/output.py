"""Predictions as files: the suffix chooses the format. Tables and archives are for small ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mpidl.data import hdf5
from mpidl.errors import ConfigError, DataError
from mpidl.files import check_folder, partial_path, publish, publish_new, writing

Columns = dict[str, NDArray[Any]]
HDF5 = ".h5"
MOST_BYTES = 256 << 20  # of a table or an archive
ROWS = 1 << 20  # that are read at once
_FORMATS = {**dict.fromkeys("iub", "%d"), "S": "%s"}


def check_target(path: Path) -> None:
    """Refuse a file that could not be written, before any work.

    Raises:
        ConfigError: Its suffix is none of `SUFFIXES`, or its folder does not exist.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            f"unknown suffix {path.suffix!r}",
            where=str(path),
            remedy=f"use one of {', '.join(SUFFIXES)}",
        )
    check_folder(path)


def check_size(path: Path, size: int) -> None:
    """Refuse a table or an archive that would be too large for rank 0.

    Raises:
        ConfigError: It is.
    """
    if path.suffix != HDF5 and size > MOST_BYTES:
        raise ConfigError(
            f"{size / 2**20:,.0f} MiB of predictions are too many for a file {path.suffix}, which "
            f"rank 0 writes alone (at most {MOST_BYTES >> 20} MiB)",
            where=str(path),
            remedy=f"name a file {path.with_suffix(HDF5).name}: all ranks write it, of any size",
        )


def publish_result(partial: Path, final: Path, kept: Path, *, overwrite: bool) -> None:
    """Give a complete file its final name.

    Args:
        partial: Where it is.
        final: Its name.
        kept: Where the predictions are, should there be a file of that name by now.
        overwrite: Replace that one.

    Raises:
        DataError: There is one; it is left as it is.
    """
    if overwrite:
        publish(partial, final)
    elif not publish_new(partial, final):
        raise DataError(
            f"was made by somebody else meanwhile; the predictions are complete in {kept.name}",
            where=str(final),
            remedy=f"rename {kept.name}",
        )


def convert(source: Path, path: Path, names: Sequence[str], *, overwrite: bool) -> None:
    """Write some datasets of an HDF5 file as a table or an archive.

    Args:
        source: The HDF5 file.
        path: The file; its suffix is one of `WRITERS`. A table has one column for each element.
        names: Of the datasets.
        overwrite: Replace an existing file.

    Raises:
        DataError: The file cannot be written, or there is one.
    """
    with hdf5.open_file(source) as file:
        columns = {name: file[name][...] for name in names}
    partial = partial_path(path)
    try:
        with writing(path):
            WRITERS[path.suffix](partial, columns)
            publish_result(partial, path, source, overwrite=overwrite)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def count_labels(source: Path, classes: int) -> list[int] | None:
    """Samples of each predicted class; None where there is no class for each sample.

    Args:
        source: The HDF5 file.
        classes: Their number.
    """
    with hdf5.open_file(source) as file:
        if "label" not in file or file["label"].ndim != 1:
            return None
        labels, counts = file["label"], np.zeros(classes, np.int64)
        for low in range(0, len(labels), ROWS):
            counts += np.bincount(labels[low : low + ROWS], minlength=classes)
        return [int(count) for count in counts]


def _write_npz(path: Path, columns: Columns) -> None:
    with open(path, "wb") as file:
        np.savez(file, allow_pickle=False, **columns)


def write_csv(path: Path | IO[bytes], columns: Columns) -> None:
    """Write a table with one column for each element of a sample."""
    names: list[str] = []
    formats: list[str] = []
    parts: list[NDArray[Any]] = []
    for name, array in columns.items():
        size = math.prod(array.shape[1:])
        names += [name] if array.ndim == 1 else [f"{name}_{index}" for index in range(size)]
        formats += [_FORMATS.get(array.dtype.kind, "%.6g")] * size
        flat = array.reshape(len(array), size)
        parts.extend(_quoted(flat).T if array.dtype.kind == "S" else flat.T)
    # a record holds each column in its own dtype: large numbers stay whole
    kinds = np.dtype([(str(index), part.dtype) for index, part in enumerate(parts)])
    table = np.rec.fromarrays(parts, dtype=kinds)
    header = ",".join(names)
    np.savetxt(
        path, table, fmt=formats, delimiter=",", header=header, comments="", encoding="utf-8"
    )


def _quoted(texts: NDArray[Any]) -> NDArray[Any]:
    """Texts as cells of a table: in quotes, which may hold commas and line ends (RFC 4180)."""
    words = np.char.replace(np.char.decode(texts, "utf-8", "backslashreplace"), '"', '""')
    return np.char.add(np.char.add('"', words), '"')


Writer = Callable[[Path, Columns], None]
WRITERS: dict[str, Writer] = {".npz": _write_npz, ".csv": write_csv}
SUFFIXES = (HDF5, *WRITERS)
