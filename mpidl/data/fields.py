"""What a data set's fields are: roles and dtypes from the first sample, classes and statistics."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mpidl.data.formats.source import Source
from mpidl.data.manifest import MAX_CLASSES, Field, Statistics, plain_name
from mpidl.errors import DataError

# Labels with more classes must use a tenth of them, or they are something else: years, postcodes
SPARSE_CLASSES = 1000
BLOCK = 1 << 18  # elements whose moments are taken at once: 2 MiB
READ_BYTES = 32 << 20  # of a source, in memory at a time
MANY = 20_000  # different labels that a rank counts and sends to the others
Note = Callable[[str], None]


@dataclass
class Moments:
    """Mean and sum of squared deviations of each channel, merged without loss of digits.

    Of blocks of samples in two passes, blocks and ranks by Chan, Golub and LeVeque, "Updating
    formulae and a pairwise algorithm for computing sample variances", 1979.

    Attributes:
        count: Number of elements of each channel.
        means: (channels,) float64.
        squares: (channels,) float64, the sums of (x - mean)^2.
        smallest: (channels,) float64.
        largest: (channels,) float64.
    """

    count: int
    means: NDArray[np.float64]
    squares: NDArray[np.float64]
    smallest: NDArray[np.float64]
    largest: NDArray[np.float64]

    @staticmethod
    def of(array: NDArray[Any], channels: int) -> Moments:
        """Those of an array whose last axis are the channels; channels 1: of all its elements."""
        rows = array.reshape(-1, channels)
        step = max(1, BLOCK // channels)
        found = None
        for start in range(0, len(rows), step):
            part = Moments._of_block(rows[start : start + step].astype(np.float64))
            found = found.merged(part) if found else part
        assert found is not None, "an array without elements"
        return found

    @staticmethod
    def _of_block(block: NDArray[np.float64]) -> Moments:
        """Those of (n, channels) elements, which are overwritten."""
        smallest, largest = block.min(axis=0), block.max(axis=0)
        ones = np.ones(len(block))
        means = ones @ block / len(block)
        block -= means
        with np.errstate(over="ignore"):  # refused in the end
            np.square(block, out=block)
        return Moments(len(block), means, ones @ block, smallest, largest)

    @np.errstate(over="ignore")
    def merged(self, other: Moments) -> Moments:
        """Those of both."""
        count = self.count + other.count
        apart = other.means - self.means
        return Moments(
            count,
            self.means + apart * (other.count / count),
            self.squares + other.squares + apart**2 * (self.count * (other.count / count)),
            np.minimum(self.smallest, other.smallest),
            np.maximum(self.largest, other.largest),
        )

    def stds(self) -> NDArray[np.float64]:
        """(channels,) standard deviations, exactly 0 where all elements are equal."""
        return np.where(self.smallest == self.largest, 0.0, np.sqrt(self.squares / self.count))

    def pooled(self) -> Moments:
        """Those of all channels as one."""
        mean = float(self.means.mean())
        squares = self.squares.sum() + self.count * np.square(self.means - mean).sum()
        return Moments(
            self.count * len(self.means),
            np.array([mean]),
            np.array([squares]),
            self.smallest.min(keepdims=True),
            self.largest.max(keepdims=True),
        )


@dataclass
class Tally:
    """What one rank learns of a field while it writes its samples.

    Attributes:
        lowest: Of labels that are classes.
        highest: Of labels that are classes.
        values: Different labels, up to `MANY`.
        moments: Of features, and of labels that are real numbers.
    """

    lowest: int = 0
    highest: int = -1
    values: set[int] = dataclasses.field(default_factory=set)
    moments: Moments | None = None

    def add(self, array: NDArray[Any], field: Field) -> None:
        """Count the elements of some samples."""
        if not array.size:
            return
        if field.role == "label" and array.dtype.kind in "iu":
            self.lowest = min(self.lowest, int(array.min()))
            self.highest = max(self.highest, int(array.max()))
            if len(self.values) <= MANY:
                self.values.update(np.unique(array)[: MANY + 1].tolist())
        elif field.role != "other":
            found = Moments.of(array, field.channels or 1)
            self.moments = self.moments.merged(found) if self.moments else found


def infer_fields(source: Source) -> dict[str, Field]:
    """The fields of a source, from its first sample; without classes and statistics.

    Args:
        source: Raw data.

    Raises:
        DataError: There are no samples, or a field cannot be stored.
    """
    if source.samples < 1:
        raise DataError("the source holds no samples", remedy="check the input files")
    fields = {}
    for name, array in source.read(0, 1).items():
        stored = to_storable(array)
        if not plain_name(name):
            raise DataError(
                f"field {name!r} cannot have this name", remedy="choose a name without slashes"
            )
        if stored.dtype.kind not in "biuf":
            raise DataError(
                f"field {name!r} has dtype {array.dtype}, which cannot be trained on",
                remedy="convert it to numbers; names of classes with "
                "numpy.unique(y, return_inverse=True)[1]",
            )
        role = source.roles.role_of(name, array)
        fields[name] = Field(stored.dtype.name, array.shape[1:], role)
    return fields


def to_storable(array: NDArray[Any]) -> NDArray[Any]:
    """Booleans as bytes, anything else in native byte order."""
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def count_classes(
    fields: Mapping[str, Field], parts: Sequence[Mapping[str, Tally]], source: Source, note: Note
) -> dict[str, Field]:
    """The fields with the classes that labels and tokens have.

    Args:
        fields: From `infer_fields`.
        parts: The tallies of all ranks.
        source: Raw data.
        note: Called with a sentence for each anomaly in the data.

    Raises:
        DataError: Labels cannot be classes.
    """
    completed = {}
    for name, field in fields.items():
        classes, names = source.classes.get(name), None
        if field.role == "label" and classes is None:
            classes = _count_classes(name, field, [part[name] for part in parts], source, note)
            names = source.class_names if classes else None
        completed[name] = msgspec.structs.replace(field, classes=classes, class_names=names)
    if not any(field.role == "label" or field.classes for field in completed.values()):
        others = [name for name, field in fields.items() if field.role == "other"]
        known = ", ".join(source.candidates or others or fields)
        note(
            "no field is a label, and mpidl train needs one: shard again with --label NAME, "
            f"one of {known}"
        )
    return completed


def add_statistics(
    fields: Mapping[str, Field], parts: Sequence[Mapping[str, Tally]], note: Note
) -> dict[str, Field]:
    """The fields with mean and standard deviation of features and labels that are no classes.

    Args:
        fields: From `count_classes`.
        parts: The tallies of all ranks.
        note: Called with a sentence for each anomaly in the data.

    Raises:
        DataError: A standard deviation is beyond float64.
    """
    completed = {}
    for name, field in fields.items():
        if field.role != "other" and not field.classes:
            statistics = _statistics(name, field, [part[name] for part in parts], note)
            field = msgspec.structs.replace(field, statistics=statistics)
        completed[name] = field
    return completed


def note_absent_classes(
    fields: Mapping[str, Field],
    parts: Sequence[Mapping[str, Tally]],
    everything: Sequence[Mapping[str, Tally]],
    note: Note,
) -> None:
    """Note classes that have samples, but none in a part of the data."""
    for name, field in fields.items():
        if field.role == "label" and field.classes:
            here: set[int] = set().union(*(part[name].values for part in parts))
            there: set[int] = set().union(*(part[name].values for part in everything))
            if absent := sorted(there - here):
                shown = ", ".join(map(str, absent[:10])) + (", ..." if len(absent) > 10 else "")
                note(f"{len(absent)} class(es) of {name!r} have no sample here: {shown}")


def _statistics(name: str, field: Field, tallies: list[Tally], note: Note) -> Statistics:
    parts = [tally.moments for tally in tallies if tally.moments]
    moments = reduce(Moments.merged, parts)
    whole = moments.pooled()
    # where all elements are equal, the mean of a sum may differ from them in the last digit
    means = np.where(moments.smallest == moments.largest, moments.smallest, moments.means)
    mean, (std,) = float(whole.means[0]), whole.stds().tolist()
    if not math.isfinite(mean + std):
        raise DataError(
            f"the standard deviation of field {name!r} is beyond float64, with values from "
            f"{whole.smallest[0]:g} to {whole.largest[0]:g}",
            remedy="scale the field, or repair these values",
        )
    if std == 0.0:
        mean = float(whole.smallest[0])
        note(
            f"the {field.role} {name!r} is {mean:g} in all samples: nothing can be learned "
            f"{'from' if field.role == 'feature' else 'of'} it"
        )
    if not field.channels:
        return Statistics.with_checksum(mean, std)
    return Statistics.with_checksum(
        mean, std, tuple(means.tolist()), tuple(moments.stds().tolist())
    )


def _count_classes(
    name: str, field: Field, tallies: list[Tally], source: Source, note: Note
) -> int | None:
    """The number of classes of a label; None for real numbers.

    Raises:
        DataError: These numbers cannot be meant as classes.
    """
    if np.dtype(field.dtype).kind == "f":
        note(
            f"the label {name!r} holds real numbers, not classes: train a regression, with "
            'loss.name = "mse" or another loss of real values'
        )
        return None
    lowest = min(tally.lowest for tally in tallies)
    highest = max(tally.highest for tally in tallies)
    if lowest < 0:
        raise DataError(
            f"label {name!r} has the negative value {lowest}", remedy="number the classes from 0"
        )
    values: set[int] = set().union(*(tally.values for tally in tallies))
    classes = max(highest + 1, len(source.class_names or ()))
    scalar = math.prod(field.shape) == 1  # one label a sample, not one for each step or pixel
    counted = scalar and len(values) <= MANY
    if classes > MAX_CLASSES or (counted and classes > max(SPARSE_CLASSES, 10 * len(values))):
        raise _too_sparse(name, values, highest, classes, counted)
    if counted and len(values) < classes:
        empty = [str(value) for value in range(classes) if value not in values]
        shown = ", ".join(empty[:10]) + (", ..." if len(empty) > 10 else "")
        note(f"{len(empty)} of the {classes} classes in {name!r} have no sample: {shown}")
    if scalar and source.samples >= 20 and 2 * len(values) > source.samples:
        number = f"{'' if counted else 'at least '}{len(values):,}"
        note(
            f"{name!r} has {number} different values in {source.samples:,} samples: with one or "
            "two samples a class nothing can be learned; numbers to be predicted (regression) are "
            "not classes"
        )
    return classes


def _too_sparse(
    name: str, values: set[int], highest: int, classes: int, counted: bool
) -> DataError:
    some = f"{len(values):,} different values" if counted else "values"
    rest = f", of which {classes - len(values):,} have no sample" if counted else ""
    return DataError(
        f"label {name!r} has {some} from {min(values):,} to {highest:,}: as classes numbered from "
        f"0 they would be {classes:,}{rest}",
        remedy="number the classes from 0 without gaps: "
        "numpy.unique(y, return_inverse=True)[1]; numbers to be predicted (regression) are not "
        "classes",
    )
