"""Finds values that would spoil a training run silently, and names their file and sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.data.manifest import Arrays, Field
from mpidl.data.mixture import Mixture
from mpidl.data.reader import Reader
from mpidl.errors import DataError

Pieces = Sequence[tuple[int, int]]


def check_values(reader: Reader | Mixture, arrays: Arrays, pieces: Pieces) -> None:
    """Refuse labels outside their classes, and inputs that are NaN or infinite.

    Args:
        reader: Knows the fields, and where each sample lies.
        arrays: What `reader.read(pieces)` returned.
        pieces: Ranges of samples.

    Raises:
        DataError: There is such a value; the message names file and sample.
    """
    for name, array in arrays.items():
        classes = reader.fields[name].classes
        if classes is not None:
            bad = (array < 0) | (array >= classes)
            if bad.any():
                raise _error(
                    reader,
                    name,
                    array,
                    bad,
                    pieces,
                    f"{_what(reader.fields[name])} must lie in [0, {classes})",
                )
        elif array.dtype.kind == "f" and not np.isfinite(array.sum(dtype=np.float64)):
            bad = ~np.isfinite(array)
            if bad.any():
                raise _error(reader, name, array, bad, pieces, "values must be finite")


def _what(field: Field) -> str:
    return "tokens" if field.role == "feature" else "labels"


def _error(
    reader: Reader | Mixture,
    name: str,
    array: NDArray[Any],
    bad: NDArray[Any],
    pieces: Pieces,
    rule: str,
) -> DataError:
    position = np.unravel_index(int(bad.argmax()), bad.shape)
    file, row = reader.locate(_sample(int(position[0]), pieces))
    return DataError(
        f"sample {row} has {name!r} = {array[position]} "
        f"({int(bad.sum())} bad value(s) in this part of the data), but {rule}",
        where=file,
        remedy="correct the source data and shard it again",
    )


def _sample(row: int, pieces: Pieces) -> int:
    """The sample in row `row` of the concatenated pieces."""
    for start, stop in pieces:
        if row < stop - start:
            return start + row
        row -= stop - start
    raise IndexError(row)
