"""What a format gives: a `Source` of samples; and the base class of the importers."""

from __future__ import annotations

import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
    """What fields, or columns of a table, are used for.

    Attributes:
        features: Names of features; where there are any, nothing else is a feature.
        labels: Names of labels; where there are none, usual names count (`LABEL_NAMES`).
    """

    features: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def named(self) -> tuple[str, ...]:
        """All names."""
        return (*self.features, *self.labels)

    def check(self) -> None:
        """Refuse a name that is given twice.

        Raises:
            DataError: One is.
        """
        for name in self.named:
            if self.named.count(name) > 1:
                raise DataError(
                    f"{name!r} is named twice as feature or label",
                    where="--feature, --label",
                    remedy="name each field once",
                )

    def role_of(self, name: str, array: NDArray[Any]) -> Role:
        """The role of a field: as it is named, else by its name, shape and dtype.

        Args:
            name: The field's name.
            array: Some samples of it, (n, *shape).
        """
        if name in self.labels or name in self.features:
            return "label" if name in self.labels else "feature"
        if not self.labels and name.lower() in LABEL_NAMES:
            return "label"
        real = array.ndim > 1 or array.dtype.kind == "f"
        return "feature" if real and not self.features else "other"


@dataclass(frozen=True)
class Source:
    """Raw data with random access to its samples.

    Attributes:
        samples: Number of samples.
        read: (start, stop) -> an array (stop - start, *shape) for each field.
        class_names: Names of the classes, where the format has them.
        roles: Of the fields, as far as they are known.
        classes: Number of classes of fields, where the format knows it: of tokens, above all.
        candidates: Fields or columns that could be the label, where it is not known.
        notes: What was assumed in reading, for people.
        numbers: Numbers of these samples in the files, where they are a part of all.
    """

    samples: int
    read: Callable[[int, int], Arrays]
    class_names: tuple[str, ...] | None = None
    roles: Roles = Roles()
    classes: Mapping[str, int] = field(default_factory=dict)
    candidates: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    numbers: NDArray[np.int64] | None = None

    def number(self, index: int) -> int:
        """The number in the files of the sample `index`."""
        return index if self.numbers is None else int(self.numbers[index])


NO_ROLES = Roles()


class Importer(ABC):
    """Base class of the formats of raw data. A subclass declares what it accepts.

    Attributes:
        INPUT: What the user gives, for help and documentation.
        SUFFIXES: Ends of file names that mean this format.
        SEVERAL_FILES: Whether it takes more than one path.
        Options: What it can be told; each option becomes one of the command line.
    """

    INPUT: ClassVar[str]
    SUFFIXES: ClassVar[tuple[str, ...]] = ()
    SEVERAL_FILES: ClassVar[bool] = False
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
            roles: Names of features and labels, where the user gives any.
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
    counts = {name: len(array) if array.ndim else -1 for name, array in arrays.items()}
    if not counts or len(set(counts.values())) != 1 or min(counts.values()) < 0:
        raise DataError(
            f"the arrays have different numbers of samples: {counts}",
            where=where,
            remedy="make them equal",
        )
    return Source(
        next(iter(counts.values())),
        lambda start, stop: {name: array[start:stop] for name, array in arrays.items()},
    )


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
