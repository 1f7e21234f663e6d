"""Finds values that would poison a training run without an error, and says in which file they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.data.reader import Arrays, Reader
from mpidl.errors import DataError

ShardLayout = Sequence[tuple[int, int]]


def check_values(reader: Reader, arrays: Arrays, pieces: ShardLayout) -> None:
    """DataError if a label lies outside its classes, or an input is NaN or infinite.

    arrays: what reader.read(pieces) returned.
    """
    for name, array in arrays.items():
        classes = reader.fields[name].classes
        if classes is not None:
            bad = (array < 0) | (array >= classes)
            if bad.any():
                raise _error(reader, name, array, bad, pieces, f"labels must lie in [0, {classes})")
        elif array.dtype.kind == "f" and not np.isfinite(array.sum(dtype=np.float64)):
            bad = ~np.isfinite(array)
            if bad.any():
                raise _error(reader, name, array, bad, pieces, "values must be finite")


def _error(
    reader: Reader,
    name: str,
    array: NDArray[Any],
    bad: NDArray[Any],
    pieces: ShardLayout,
    rule: str,
) -> DataError:
    place = np.unravel_index(int(bad.argmax()), bad.shape)
    file, local = reader.locate(_sample(int(place[0]), pieces))
    return DataError(
        f"sample {local} has {name!r} = {array[place]} ({int(bad.sum())} bad value(s) in this part of the data), but {rule}",
        where=file,
        remedy="correct the source data and shard it again",
    )


def _sample(row: int, pieces: ShardLayout) -> int:
    """The number of the sample that stands in row `row` of the concatenated pieces."""
    for start, stop in pieces:
        if row < stop - start:
            return start + row
        row -= stop - start
    raise IndexError(row)
