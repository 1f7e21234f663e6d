"""Writes predictions as files: the suffix chooses the format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.data import hdf5
from mpidl.errors import ConfigError
from mpidl.files import check_folder, write_atomically, writing


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


def write_predictions(path: Path, probabilities: NDArray[np.float32]) -> list[int]:
    """Write the arrays "label", (n,) int64, and "probability", (n, classes) float32.

    Args:
        path: The file; its suffix is one of `WRITERS`.
        probabilities: (n, classes).

    Returns:
        The number of samples predicted for each class.

    Raises:
        DataError: The file cannot be written.
    """
    label = probabilities.argmax(axis=1)
    with writing(path), write_atomically(path) as partial:
        WRITERS[path.suffix](partial, label, probabilities)
    return [int(count) for count in np.bincount(label, minlength=probabilities.shape[1])]


def _write_npz(path: Path, label: NDArray[Any], probability: NDArray[Any]) -> None:
    with open(path, "wb") as file:
        np.savez(file, label=label, probability=probability)


def _write_hdf5(path: Path, label: NDArray[Any], probability: NDArray[Any]) -> None:
    with hdf5.open_file(path, "w") as file:
        file["label"] = label
        file["probability"] = probability


def _write_csv(path: Path, label: NDArray[Any], probability: NDArray[Any]) -> None:
    classes = probability.shape[1]
    np.savetxt(
        path,
        np.column_stack([label, probability]),
        fmt=["%d", *["%.6g"] * classes],
        delimiter=",",
        header="label," + ",".join(f"probability_{index}" for index in range(classes)),
        comments="",
    )


Writer = Callable[[Path, NDArray[Any], NDArray[Any]], None]
WRITERS: dict[str, Writer] = {".npz": _write_npz, ".h5": _write_hdf5, ".csv": _write_csv}
