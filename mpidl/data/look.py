"""What data hold: values, missing values, class balance and layout, from a bounded part of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.data.manifest import Arrays, Field
from mpidl.errors import MpidlError, wrap

BLOCKS = 256  # parts of the data, evenly spaced, that the scanned samples come from
SCAN_BYTES = 256 << 20  # that are scanned unless all are asked for
READ_BYTES = 32 << 20  # in memory at a time
LARGEST_SAMPLE = 1 << 30  # bytes; larger ones are not read: files may claim anything
MOST_CLASSES = 20_000  # different labels that are counted
Pieces = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Part:
    """Fields of equal length.

    Attributes:
        samples: Their length.
        fields: What they are, by name.
        read: Ascending ranges of samples -> the samples, (n, *shape) of each field.
        layouts: Field -> how it lies in its files, where that is known.
        slow: Field -> why reading its samples is slow.
        files: Name of a file -> samples in it.
    """

    samples: int
    fields: dict[str, Field]
    read: Callable[[Pieces], Arrays]
    layouts: Mapping[str, str] = field(default_factory=dict)
    slow: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample over all fields."""
        return max(1, sum(found.sample_bytes for found in self.fields.values()))


@dataclass
class Values:
    """The values of one field.

    Attributes:
        count: Finite elements.
        mean: Of these.
        squares: Sum of their squared deviations from the mean.
        smallest: Of these.
        largest: Of these.
        nan: NaN.
        infinite: Infinities.
        classes: Of labels: class -> elements; None where they are too many, or no whole numbers.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    smallest: float = math.inf
    largest: float = -math.inf
    nan: int = 0
    infinite: int = 0
    classes: dict[int, int] | None = None

    def add(self, array: NDArray[Any]) -> None:
        """Count the elements of some samples.

        Merges by Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
        sample variances", 1979.
        """
        flat = array.reshape(-1)
        if flat.dtype.kind == "f":
            finite = np.isfinite(flat)
            nan = int(np.isnan(flat).sum())
            self.nan += nan
            self.infinite += flat.size - int(finite.sum()) - nan
            flat = flat[finite]
        if not flat.size:
            return
        self._count_classes(flat)
        exact = flat.astype(np.float64)
        self.smallest = min(self.smallest, float(exact.min()))
        self.largest = max(self.largest, float(exact.max()))
        with np.errstate(over="ignore", invalid="ignore"):
            mean = float(exact.mean())
            squares = float(np.square(exact - mean).sum())
        total, apart = self.count + flat.size, mean - self.mean
        self.squares += squares + apart * apart * self.count * (flat.size / total)
        self.mean += apart * flat.size / total
        self.count = total

    def _count_classes(self, flat: NDArray[Any]) -> None:
        if self.classes is None:
            return
        values, counts = np.unique(flat, return_counts=True)
        if flat.dtype.kind not in "iu" or len(values) > MOST_CLASSES:
            self.classes = None
            return
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            self.classes[value] = self.classes.get(value, 0) + count
        if len(self.classes) > MOST_CLASSES:
            self.classes = None

    def summary(self) -> dict[str, Any]:
        """For people and for --json; numbers that JSON lacks are None."""
        std = math.sqrt(self.squares / self.count) if self.count else math.nan
        numbers = {"min": self.smallest, "mean": self.mean, "std": std, "max": self.largest}
        if not self.count:
            numbers = dict.fromkeys(numbers, math.nan)
        return {
            **{key: value if math.isfinite(value) else None for key, value in numbers.items()},
            "nan": self.nan,
            "infinite": self.infinite,
        }


def choose(samples: int, wanted: int) -> list[tuple[int, int]]:
    """Ranges of about `wanted` samples in all, evenly spaced over `samples`; all if wanted is 0."""
    if not 0 < wanted < samples:
        return [(0, samples)] if samples else []
    blocks = min(wanted, BLOCKS)
    pieces = []
    for index in range(blocks):
        start, following = index * samples // blocks, (index + 1) * samples // blocks
        length = (index + 1) * wanted // blocks - index * wanted // blocks
        pieces.append((start, min(start + length, following)))
    return pieces


def affordable(part: Part, wanted: int) -> int:
    """The number of samples to scan: `wanted`, or what `SCAN_BYTES` allow; 0: all."""
    if wanted == 0 or (part.samples <= wanted and part.samples * part.sample_bytes <= SCAN_BYTES):
        return 0
    return max(1, min(wanted, part.samples, SCAN_BYTES // part.sample_bytes))


def scan(part: Part, wanted: int, note: Callable[[str], None]) -> tuple[dict[str, Any], int]:
    """Look at the samples of a part.

    Args:
        part: Of the data.
        wanted: Samples to look at, see `affordable`.
        note: Told what could not be read.

    Returns:
        Field -> what it is and holds, for people and for --json; and the samples that were scanned.
    """
    values = {
        name: Values(classes={} if found.role == "label" else None)
        for name, found in part.fields.items()
    }
    scanned = 0
    try:
        for pieces in _amounts(part, choose(part.samples, affordable(part, wanted))):
            for name, array in part.read(pieces).items():
                values[name].add(array)
            scanned += sum(stop - start for start, stop in pieces)
    except (MpidlError, OSError, MemoryError, ValueError, RuntimeError, KeyError) as error:
        note(f"reading stopped after {scanned:,} samples: {wrap(error, 'reading samples')}")
    found = {
        name: _describe(known, values[name], part, name) for name, known in part.fields.items()
    }
    return found, scanned


def _amounts(part: Part, pieces: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """The pieces in groups that fit in memory."""
    most = max(1, READ_BYTES // part.sample_bytes)
    groups: list[list[tuple[int, int]]] = []
    room = 0
    for start, stop in pieces:
        while start < stop:
            if room == 0:
                groups.append([])
                room = most
            end = min(stop, start + room)
            groups[-1].append((start, end))
            room -= end - start
            start = end
    return groups


def _describe(known: Field, values: Values, part: Part, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "dtype": known.dtype,
        "shape": list(known.shape),
        "role": known.role,
        **values.summary(),
        "layout": part.layouts.get(name),
        "slow": part.slow.get(name),
    }
    if values.classes:
        names = known.class_names or ()
        found["classes"] = {
            str(value): {"name": names[value] if 0 <= value < len(names) else None, "count": count}
            for value, count in sorted(values.classes.items())
        }
    return found
