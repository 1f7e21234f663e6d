"""Counts elements that are no values: NaN, infinities, fill values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Missing:
    """Elements of a field that are no values.

    Attributes:
        nan: NaN.
        infinite: Infinities.
        fill: Equal to the fill value of the file.
        samples: That hold any of these.
        good: Samples that hold none.
    """

    nan: int = 0
    infinite: int = 0
    fill: int = 0
    samples: int = 0
    good: int = 0

    def add(self, array: NDArray[Any], fill: float | None) -> NDArray[Any]:
        """Count those of some samples; the samples that have none."""
        rows = array.reshape(len(array), -1)
        bad = np.zeros(len(rows), dtype=bool)
        if rows.dtype.kind == "f" and not np.isfinite(rows.sum(dtype=np.float64)):
            nan, infinite = np.isnan(rows), np.isinf(rows)
            self.nan += int(nan.sum())
            self.infinite += int(infinite.sum())
            bad |= (nan | infinite).any(axis=1)
        if fill is not None and math.isfinite(fill):
            filled = rows == np.array(fill).astype(rows.dtype)
            self.fill += int(filled.sum())
            bad |= filled.any(axis=1)
        self.samples += int(bad.sum())
        self.good += len(rows) - int(bad.sum())
        return array[~bad] if bad.any() else array

    def merged(self, other: Missing) -> Missing:
        """The sums of both."""
        return Missing(*(getattr(self, key) + getattr(other, key) for key in vars(self)))

    def describe(self, name: str, fill: float | None) -> str:
        """What training makes of them, for people.

        Args:
            name: The field.
            fill: Its fill value.
        """
        kinds = {
            "NaN": self.nan,
            "infinities": self.infinite,
            f"fill values ({fill or 0:g})": self.fill,
        }
        counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count)
        refused = (
            "mpidl train refuses them"
            if self.nan or self.infinite
            else "training takes them for values"
        )
        ending = "" if self.good else "; no sample is without, so that there are no statistics"
        return (
            f"{name!r} has {counts} in {self.samples:,} samples, which are not in its statistics: "
            f"{refused}; replace them in the file, or leave these samples out{ending}"
        )
