"""Writes predictions as files: the suffix chooses the format."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.data import hdf5
from mpidl.errors import ConfigError
from mpidl.files import check_folder, write_atomically, writing

Columns = dict[str, NDArray[Any]]


def check_target(path: Path) -> None:
    """Refuse a file that could not be written, before any work.

    Raises:
        ConfigError: Its suffix is none of `WRITERS`, or its folder does not exist.
    """
    if path.suffix not in WRITERS:
        raise ConfigError(
            f"unknown suffix {path.suffix!r}",
            where=str(path),
            remedy=f"use one of {', '.join(WRITERS)}",
        )
    check_folder(path)


def write_predictions(path: Path, predictions: Columns) -> None:
    """Write arrays by name, for example "label", (n,) int64, and "probability", (n, classes).

    Args:
        path: The file; its suffix is one of `WRITERS`. A table has one column for each element.
        predictions: Arrays (n, ...).

    Raises:
        DataError: The file cannot be written.
    """
    with writing(path), write_atomically(path) as partial:
        WRITERS[path.suffix](partial, predictions)


def _write_npz(path: Path, columns: Columns) -> None:
    with open(path, "wb") as file:
        np.savez(file, allow_pickle=False, **columns)


def _write_hdf5(path: Path, columns: Columns) -> None:
    with hdf5.open_file(path, "w") as file:
        for name, array in columns.items():
            file[name] = array


def _write_csv(path: Path, columns: Columns) -> None:
    names: list[str] = []
    formats: list[str] = []
    for name, array in columns.items():
        size = math.prod(array.shape[1:])
        names += [name] if array.ndim == 1 else [f"{name}_{index}" for index in range(size)]
        formats += ["%d" if array.dtype.kind in "iu" else "%.6g"] * size
    table = np.column_stack(
        [array.reshape(len(array), math.prod(array.shape[1:])) for array in columns.values()]
    )
    header = ",".join(names)
    np.savetxt(path, table, fmt=formats, delimiter=",", header=header, comments="")


Writer = Callable[[Path, Columns], None]
WRITERS: dict[str, Writer] = {".npz": _write_npz, ".h5": _write_hdf5, ".csv": _write_csv}
