"""Finds values that would spoil a training run silently, and names their file and sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.data.manifest import Arrays, Field
from mpidl.data.mixture import Mixture
from mpidl.data.native import Indices
from mpidl.data.reader import Reader
from mpidl.errors import DataError

Pieces = Sequence[tuple[int, int]]
BLOCK = 1 << 16  # elements that are looked at together


def check_values(
    reader: Reader | Mixture, arrays: Arrays, pieces: Pieces, place: Indices | None = None
) -> None:
    """Refuse labels outside their classes, and inputs that are NaN or infinite.

    Args:
        reader: Knows the fields, and where each sample lies.
        arrays: What `reader.read(pieces, place=place)` returned.
        pieces: Ranges of samples.
        place: Which row each of them became; None: one after another.

    Raises:
        DataError: There is such a value; the message names file and sample.
    """
    for name, array in arrays.items():
        classes = reader.fields[name].classes
        if classes is not None:
            if not array.size or (array.min() >= 0 and array.max() < classes):
                continue
            bad = (array < 0) | (array >= classes)
            rule = f"{_what(reader.fields[name])} must lie in [0, {classes})"
            raise _error(reader, name, _in_order(array, place), _in_order(bad, place), pieces, rule)
        if array.dtype.kind == "f" and not _all_finite(array):
            bad, rule = ~np.isfinite(array), "values must be finite"
            raise _error(reader, name, _in_order(array, place), _in_order(bad, place), pieces, rule)


def _all_finite(array: NDArray[Any]) -> bool:
    """Whether there is no NaN and no infinity; the second look at a block finds it in the cache."""
    flat = array.reshape(-1)
    blocks = (flat[low : low + BLOCK] for low in range(0, flat.size, BLOCK))
    # a NaN is the minimum and the maximum of what it is in
    return all(block.min() > -np.inf and block.max() < np.inf for block in blocks)


def _in_order(array: NDArray[Any], place: Indices | None) -> NDArray[Any]:
    """The rows in the order of the pieces, so that the first bad one is that of the file."""
    return array if place is None else array[place]


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
