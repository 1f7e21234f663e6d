"""Writes predictions where people want them: .npz, .h5 or .csv."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.data import hdf5
from mpidl.errors import ConfigError
from mpidl.files import check_folder, write_atomically, writing

SUFFIXES = (".npz", ".h5", ".csv")


def check_target(path: Path) -> None:
    """ConfigError before any work if the file could not be written."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            f"unknown kind of file {path.suffix!r}",
            where=str(path),
            remedy=f"use one of {', '.join(SUFFIXES)}",
        )
    check_folder(path)


def write_predictions(path: Path, probabilities: NDArray[Any] | None) -> list[int]:
    """Write "label" (n,) int64 and "probability" (n, classes) float32; returns the samples per predicted class."""
    assert probabilities is not None
    label = probabilities.argmax(axis=1)
    with writing(path), write_atomically(path) as partial:
        if path.suffix == ".npz":
            with open(partial, "wb") as raw:
                np.savez(raw, label=label, probability=probabilities)
        elif path.suffix == ".h5":
            with hdf5.open_file(partial, "w") as file:
                file["label"], file["probability"] = label, probabilities
        else:
            classes = probabilities.shape[1]
            header = "label," + ",".join(f"probability_{index}" for index in range(classes))
            table = np.column_stack([label, probabilities])
            np.savetxt(
                partial,
                table,
                fmt=["%d", *["%.6g"] * classes],
                delimiter=",",
                header=header,
                comments="",
            )
    return [int(count) for count in np.bincount(label, minlength=probabilities.shape[1])]
