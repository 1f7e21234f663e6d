"""Shifts of periodic fields."""

from __future__ import annotations

from typing import Any

from mpidl.augment.base import AXES, Moving
from mpidl.backend.headers import codes
from mpidl.options import NotNegative, Section


class Roll(Moving):
    """Shifts periodic fields by a random distance; what leaves on one side enters on the other."""

    name = "roll"

    class Options(Section, frozen=True):
        """Options of roll.

        Attributes:
            axes: Numbers of the periodic axes of a sample; none given: all of them.
        """

        axes: tuple[NotNegative, ...] = ()

    options: Options

    def check(self) -> None:
        super().check()
        self.needs_space((1, 2, 3), "fields (size, ..., channels)")
        count = len(self.samples.space)
        if any(axis >= count for axis in self.options.axes):
            raise self.error(
                f"has the axes {list(self.options.axes)}, but fields have {count} "
                f"(shape {self.samples.shape})",
                f"number the axes from 0 to {count - 1}",
            )

    def place(self, record: Any) -> None:
        count = len(self.samples.space)
        for number in self.options.axes or range(count):
            axis = AXES[3 - count + number]
            record[f"spread_{axis}"] = self.samples.space[number]
            record[f"edge_{axis}"] = codes("EDGE")["wrap"]
