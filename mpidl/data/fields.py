"""What a data set's fields are: roles and dtypes from the first sample, classes and statistics."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mpidl.data.formats.source import Source, infer_role
from mpidl.data.manifest import MAX_CLASSES, Field, plain_name
from mpidl.data.moments import Moments, channels_of, statistics_of
from mpidl.errors import DataError

# Labels with more classes must use a tenth of them, or they are something else: years, postcodes
SPARSE_CLASSES = 1000
MANY = 20_000  # different labels that a rank counts and sends to the others
Note = Callable[[str], None]


@dataclass
class Tally:
    """What one rank learns of a field while it writes its samples.

    Attributes:
        moments: Of a field that has statistics.
        lowest: Of whole numbers that are labels.
        highest: Of them.
        values: Which there are, up to `MANY`.
    """

    moments: Moments | None = None
    lowest: int = 0
    highest: int = -1
    values: set[int] = dataclasses.field(default_factory=set)

    @classmethod
    def of(cls, field: Field) -> Tally:
        """An empty one."""
        return cls(Moments.empty(channels_of(field.shape) or 1) if has_statistics(field) else None)

    def add(self, array: NDArray[Any], role: str) -> None:
        """Count the elements of some samples."""
        if self.moments is not None:
            self.moments.add(array)
        elif role == "label" and array.size:
            self.lowest = min(self.lowest, int(array.min()))
            self.highest = max(self.highest, int(array.max()))
            if len(self.values) <= MANY:
                self.values.update(np.unique(array)[: MANY + 1].tolist())


def has_statistics(field: Field) -> bool:
    """Whether mean and standard deviation mean anything: not of classes and tokens."""
    real = np.dtype(field.dtype).kind == "f"
    return field.classes is None and (field.role == "feature" or (field.role == "label" and real))


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
        if 0 in array.shape[1:]:
            raise DataError(
                f"field {name!r} has samples of shape {array.shape[1:]}, which hold no values",
                remedy="leave the field out",
            )
        role = source.roles.get(name) or infer_role(name, array, source.label)
        fields[name] = Field(
            stored.dtype.name,
            array.shape[1:],
            role,
            classes=source.classes.get(name),
            units=source.units.get(name),
        )
    return fields


def to_storable(array: NDArray[Any]) -> NDArray[Any]:
    """Booleans as bytes, long doubles as doubles, anything else in native byte order."""
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype == np.longdouble:
        return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def complete_fields(
    fields: Mapping[str, Field], parts: Sequence[Mapping[str, Tally]], source: Source, note: Note
) -> dict[str, Field]:
    """Add what the tallies tell: classes of labels, statistics of real numbers.

    Args:
        fields: From `infer_fields`.
        parts: The tallies of all ranks.
        source: Raw data.
        note: Called with a sentence for each anomaly in the data.

    Raises:
        DataError: Labels cannot be classes, or values are too large for statistics.
    """
    completed = {}
    for name, field in fields.items():
        tallies = [part[name] for part in parts]
        if field.role == "label":
            classes = _count_classes(name, field, tallies, source, note)
            names = source.class_names if classes else None
            field = msgspec.structs.replace(field, classes=classes, class_names=names)
        moments = [tally.moments for tally in tallies if tally.moments is not None]
        if moments:
            statistics = statistics_of(moments, field.shape)
            if not statistics.is_finite:
                raise DataError(
                    f"the standard deviation of {name!r} is beyond float64",
                    remedy="scale the field, or repair its largest values",
                )
            field = msgspec.structs.replace(field, statistics=statistics)
            if statistics.std == 0:
                note(
                    f"the {field.role} {name!r} is {statistics.mean:g} in all samples: nothing can "
                    "be learned from it"
                )
        completed[name] = field
    tokens = any(field.role == "feature" and field.classes for field in fields.values())
    if not tokens and not any(field.role == "label" for field in fields.values()):
        others = [name for name, field in fields.items() if field.role == "other"]
        known = ", ".join(source.candidates or others or fields)
        note(
            "no field is a label, which every task but rollout needs: name it with --label NAME, "
            f"one of {known}"
        )
    return completed


def note_absent_classes(
    fields: Mapping[str, Field],
    parts: Sequence[Mapping[str, Tally]],
    whole: Sequence[Mapping[str, Tally]],
    note: Note,
) -> None:
    """Note the classes that have samples, but none in a part of the data.

    Args:
        fields: From `complete_fields`.
        parts: The tallies of all ranks, of the part.
        whole: The tallies of all ranks, of everything.
        note: Called with a sentence for each such label.
    """
    for name, field in fields.items():
        if field.role == "label" and field.classes:
            here: set[int] = set().union(*(part[name].values for part in parts))
            there: set[int] = set().union(*(part[name].values for part in whole))
            if (absent := sorted(there - here)) and len(there) <= MANY:
                shown = ", ".join(map(str, absent[:10])) + (", ..." if len(absent) > 10 else "")
                note(f"{len(absent)} class(es) of {name!r} have no sample: {shown}")


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
            f"label {name!r} has the negative value {lowest}",
            remedy="number the classes from 0; if these are amounts, add --real-labels",
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
        have = "has" if len(empty) == 1 else "have"
        note(f"{len(empty)} of the {classes} classes in {name!r} {have} no sample: {shown}")
    if scalar and source.samples >= 20 and 2 * len(values) > source.samples:
        number = f"{'' if counted else 'at least '}{len(values):,}"
        note(
            f"{name!r} has {number} different values in {source.samples:,} samples: with one or "
            "two samples a class nothing can be learned; if these are amounts, shard with "
            "--real-labels"
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
        "numpy.unique(y, return_inverse=True)[1]; if these are amounts, add --real-labels",
    )
