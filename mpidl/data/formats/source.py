"""What a format gives: a `Source` of samples; and the base class of the importers."""

from __future__ import annotations

import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mpidl.data.manifest import Arrays, Role
from mpidl.errors import DataError, errno_of, unreadable
from mpidl.options import Section
from mpidl.registry import NoOptions

LABEL_NAMES = {"label", "labels", "y", "target", "targets", "class", "classes"}
MALFORMED = (ValueError, OSError, EOFError, KeyError, struct.error, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Roles:
    """The fields, or columns of a table, that the user names.

    Attributes:
        features: Where there are any, nothing else is a feature.
        labels: Where there are none, usual names count (`LABEL_NAMES`).
    """

    features: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def label(self) -> str | None:
        """The first label, for formats that have one."""
        return self.labels[0] if self.labels else None


NO_ROLES = Roles()


@dataclass(frozen=True)
class Source:
    """Raw data with random access to its samples.

    Attributes:
        samples: Number of samples.
        read: (start, stop) -> an array (stop - start, *shape) for each field.
        class_names: Names of the classes, where the format has them.
        label: The label field, where it is known.
        candidates: Fields or columns that could be the label, where it is not known.
        notes: What was assumed in reading, for people.
        roles: Of fields whose role is known, by the format or the user.
        classes: Features that hold tokens -> the size of their vocabulary.
        units: Of fields that have them.
        numbers: The numbers of these samples in the files, where they are a part of them.
        keys: Names of the samples in the files by their numbers, where the format has them.
    """

    samples: int
    read: Callable[[int, int], Arrays]
    class_names: tuple[str, ...] | None = None
    label: str | None = None
    candidates: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    roles: Mapping[str, Role] = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    numbers: NDArray[np.int64] | None = None
    keys: Sequence[str] = ()

    def number(self, index: int) -> int:
        """The number in the files of the sample `index`."""
        return index if self.numbers is None else int(self.numbers[index])


class Importer(ABC):
    """Base class of the formats of raw data. A subclass declares what it accepts.

    Attributes:
        INPUT: What the user gives, for help and documentation.
        SUFFIXES: Ends of file names that mean this format.
        SEVERAL_FILES: Whether it takes more than one path.
        HEEDS_ROLES: Whether `open` gives the named roles itself, as for columns of a table.
        Options: What it can be told; each option becomes one of the command line.
    """

    INPUT: ClassVar[str]
    SUFFIXES: ClassVar[tuple[str, ...]] = ()
    SEVERAL_FILES: ClassVar[bool] = False
    HEEDS_ROLES: ClassVar[bool] = False
    Options: ClassVar[type[Section]] = NoOptions

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Whether `path` looks like this format."""
        return path.is_file() and path.name.lower().endswith(cls.SUFFIXES)

    @classmethod
    @abstractmethod
    def open(cls, paths: Sequence[Path], roles: Roles, options: Any) -> Source:
        """The samples in files of this format.

        Args:
            paths: The files; exactly one unless `SEVERAL_FILES`.
            roles: Names of features and labels, where the user gives some.
            options: An instance of `Options`.

        Raises:
            DataError: A file cannot be read; the message names it.
        """


def source_from_arrays(arrays: Arrays, where: str) -> Source:
    """A source over arrays, or HDF5 datasets, of equal length.

    Args:
        arrays: Field -> (n, *shape).
        where: The files, for messages.

    Raises:
        DataError: The lengths differ.
    """
    samples = equal_lengths({name: array.shape for name, array in arrays.items()}, where)
    return Source(
        samples,
        lambda start, stop: {name: array[start:stop] for name, array in arrays.items()},
    )


def concatenated(parts: Sequence[Source], units: Mapping[str, str]) -> Source:
    """Sources of the same fields, one behind the other.

    Args:
        parts: At least one.
        units: Of the fields that have some.
    """
    stops = list(accumulate(part.samples for part in parts))

    def read(start: int, stop: int) -> Arrays:
        pieces = []
        for part, end in zip(parts, stops, strict=True):
            first = end - part.samples
            low, high = max(start, first), min(stop, end)
            if low < high:
                pieces.append(part.read(low - first, high - first))
        pieces = pieces or [parts[0].read(0, 0)]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    return Source(stops[-1], read, units=units)


def source_from_files(
    paths: Sequence[Path], load: Callable[[Path], NDArray[Any]], remedy: str
) -> Source:
    """A source over files of one array each: the features, the labels, then other fields.

    Args:
        paths: The files in this order.
        load: Reads one.
        remedy: For a file that cannot be read.

    Raises:
        DataError: A file cannot be read, or the lengths differ.
    """
    names = ["image", "label", *(f"field{index}" for index in range(2, len(paths)))]
    arrays: Arrays = {}
    for name, path in zip(names, paths, strict=False):
        try:
            arrays[name] = load(path)
        except MALFORMED as error:
            raise unusable(error, path, remedy) from error
    if arrays["image"].ndim < 3:
        arrays = {"features" if name == "image" else name: array for name, array in arrays.items()}
    return source_from_arrays(arrays, ", ".join(map(str, paths)))


def unusable(error: Exception, path: Path, remedy: str) -> DataError:
    """The error for a file that could not be read as what it should be."""
    return unreadable(errno_of(error), str(path)) or DataError(
        f"cannot be read: {error}", where=str(path), remedy=remedy
    )


def infer_role(name: str, array: NDArray[Any], label: str | None) -> Role:
    """The role of a field: the label by its name, a feature by its shape or dtype.

    Args:
        name: The field's name.
        array: Some samples of it, (n, *shape).
        label: The name of the label field, where it is known; else usual names count.
    """
    if name == label or (label is None and name.lower() in LABEL_NAMES):
        return "label"
    return "feature" if array.ndim > 1 or array.dtype.kind == "f" else "other"


def equal_lengths(shapes: Mapping[str, tuple[int, ...]], where: str) -> int:
    """Number of samples of arrays that all have them along their first dimension.

    Args:
        shapes: By the names of the arrays.
        where: The files, for messages.

    Raises:
        DataError: There is no array, one is a single number, or the lengths differ.
    """
    if not shapes:
        raise DataError("holds no arrays", where=where, remedy="name a file with arrays")
    for name, shape in shapes.items():
        if not shape:
            raise DataError(
                f"{name!r} is a single number, not an array of samples",
                where=where,
                remedy="leave it out, or give it a dimension of the samples",
            )
    counts = {name: shape[0] for name, shape in shapes.items()}
    if len(set(counts.values())) != 1:
        raise DataError(
            f"the arrays have different numbers of samples: {counts}",
            where=where,
            remedy="make them equal",
        )
    return next(iter(counts.values()))
