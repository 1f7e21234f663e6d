"""Mirrored images."""

from __future__ import annotations

from typing import Any

from mpidl.augment.base import CHANCE, Moving
from mpidl.options import Fraction, Section


class Flip(Moving):
    """Mirrors an image. For fields with vectors see rotate, which changes their signs too."""

    name = "flip"

    class Options(Section, frozen=True):
        """Options of flip.

        Attributes:
            horizontal: Probability that left and right change places.
            vertical: Probability that top and bottom change places.
        """

        horizontal: Fraction = 0.5
        vertical: Fraction = 0.0

    options: Options

    def check(self) -> None:
        super().check()
        self.needs_space((2, 3), "images (height, width, channels)")

    def place(self, record: Any) -> None:
        record["mirror_h"] = round(self.options.vertical * CHANCE)
        record["mirror_w"] = round(self.options.horizontal * CHANCE)
