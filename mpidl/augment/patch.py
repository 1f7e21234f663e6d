"""Random parts of large images and fields."""

from __future__ import annotations

from typing import Any

from mpidl.augment.base import AXES, Moving
from mpidl.options import Positive, Section


class Patch(Moving):
    """A part of a sample at a random place, and the same part of targets that are fields.

    A model that is convolutional throughout is trained on parts and evaluated on whole samples.
    """

    name = "patch"

    class Options(Section, frozen=True):
        """Options of patch.

        Attributes:
            size: Of the part along each axis.
        """

        size: tuple[Positive, ...] = (64, 64)

    options: Options

    def check(self) -> None:
        super().check()
        self.needs_space((1, 2, 3), "images or fields (size, ..., channels)")
        size, space = self.options.size, self.samples.space
        if len(size) != len(space) or any(a > b for a, b in zip(size, space, strict=True)):
            raise self.error(
                f"takes parts of {list(size)}, but samples have the shape {self.samples.shape}",
                f"give {len(space)} number(s) up to {list(space)} as augment.patch.size",
            )

    def place(self, record: Any) -> None:
        for axis, size in zip(AXES[-len(self.options.size) :], self.options.size, strict=True):
            record[f"o{axis}"] = size
            record[f"spread_{axis}"] = record[axis] - size + 1
