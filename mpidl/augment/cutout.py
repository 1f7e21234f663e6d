"""Squares left out of images."""

from __future__ import annotations

from mpidl.augment.base import CHANCE, Pointwise
from mpidl.backend import Array, Ops
from mpidl.backend.contract.augment import Drawn
from mpidl.options import Fraction, Positive, Section


class Cutout(Pointwise):
    """Sets a random square to the mean of the inputs (DeVries and Taylor, 2017)."""

    name = "cutout"

    class Options(Section, frozen=True):
        """Options of cutout.

        Attributes:
            size: Of the square, in pixels; what lies beyond the edge of the image is left out.
            probability: Of a square in an image.
        """

        size: Positive = 8
        probability: Fraction = 1.0

    options: Options

    def check(self) -> None:
        self.needs_space((2,), "images (height, width, channels)")
        if self.options.size > 2 * max(self.samples.taken):
            raise self.error(
                f"cuts out squares of {self.options.size} pixels, but images have the shape "
                f"{self.samples.taken_shape}",
                "choose a smaller augment.cutout.size",
            )

    def apply(self, ops: Ops, x: Array, drawn: Drawn) -> None:
        ops.augment_cutout(x, drawn, self.options.size, round(self.options.probability * CHANCE))
