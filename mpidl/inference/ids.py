"""What tells the rows of a prediction apart: the number of each sample, and its key."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.data.manifest import Arrays

SAMPLE, KEY = "sample", "key"  # columns of the file
KEY_FIELDS = ("key", "keys", "id", "ids", "sample_id", "sample_ids", "uid", "uuid")
Columns = dict[str, NDArray[Any]]


def find_key(kinds: Mapping[str, tuple[tuple[int, ...], str]], taken: Collection[str]) -> str:
    """The field that holds the key of each sample, by its name, or "".

    A key is one whole number or one text of fixed length.

    Args:
        kinds: Shape of a sample, and dtype, of each field.
        taken: Fields that are inputs or targets.
    """
    for name, (shape, dtype) in kinds.items():
        usual = name.lower() in KEY_FIELDS and name not in taken
        if usual and shape in ((), (1,)) and np.dtype(dtype).kind in "iuSU":
            return name
    return ""


def encode_key(values: NDArray[Any]) -> NDArray[Any]:
    """Keys as a file holds them: int64 or uint64, or texts as bytes of UTF-8.

    Args:
        values: (n,) or (n, 1) of a field from `find_key`.

    Returns:
        (n,). The number of bytes of a text depends on the dtype of the field alone.
    """
    flat = values.reshape(len(values))
    if flat.dtype.kind in "iu":
        return flat.astype(np.uint64 if flat.dtype == np.uint64 else np.int64)
    if flat.dtype.kind == "U":  # 4 bytes a character, as many as UTF-8 needs at most
        return np.char.encode(flat, "utf-8").astype(f"S{max(1, flat.dtype.itemsize)}")
    return flat


def encode_names(names: Sequence[str], width: int) -> NDArray[Any]:
    """Names of files or members as keys.

    Args:
        names: Of some samples.
        width: Bytes of the longest name of all samples.
    """
    return np.array([name_bytes(name) for name in names], f"S{max(1, width)}")


def name_bytes(name: str) -> bytes:
    """A name as bytes; those of files may be of any encoding."""
    return name.encode("utf-8", "surrogateescape")


def make_ids(numbers: NDArray[np.int64], arrays: Arrays, key: str) -> Columns:
    """The columns that tell samples apart.

    Args:
        numbers: (n,) of the samples in their data set or files.
        arrays: Their fields.
        key: Of `find_key`.
    """
    found: Columns = {SAMPLE: numbers}
    return found | {KEY: encode_key(arrays[key])} if key else found
