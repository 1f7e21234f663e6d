"""Random crops of padded images."""

from __future__ import annotations

from typing import Any, Literal

from mpidl.augment.base import AXES, Moving
from mpidl.backend.headers import codes
from mpidl.options import Positive, Section

_EDGES = {"zero": "fill", "mean": "fill", "reflect": "reflect", "edge": "nearest"}


class Crop(Moving):
    """A window of the image's size out of the image with padding around it."""

    name = "crop"

    class Options(Section, frozen=True):
        """Options of crop.

        Attributes:
            padding: Pixels on each side.
            mode: What is beyond the edge: "zero", before normalization; "mean", of all inputs;
                "reflect", the image mirrored; "edge", its outermost pixels.
        """

        padding: Positive = 4
        mode: Literal["zero", "mean", "reflect", "edge"] = "zero"

    options: Options

    def check(self) -> None:
        super().check()
        self.needs_space((2,), "images (height, width, channels)")
        smallest = min(self.samples.space)
        if self.options.padding >= smallest:
            raise self.error(
                f"pads by {self.options.padding} pixels, but images have the shape "
                f"{self.samples.shape}",
                f"set augment.crop.padding below {smallest}",
            )
        beyond = self.options.mode in ("zero", "mean")
        if self.samples.has_field_targets and self.samples.targets == "values" and beyond:
            raise self.error(
                "pads inputs, but targets are fields, which have no value beyond the edge",
                'set augment.crop.mode = "reflect" or "edge", or use augment.roll for periodic '
                "fields",
            )

    @property
    def fill(self) -> float:
        """The normalized value of the padding."""
        return self.samples.shift if self.options.mode == "zero" else 0.0

    def place(self, record: Any) -> None:
        for axis in AXES[1:]:
            record[f"low_{axis}"] = -self.options.padding
            record[f"spread_{axis}"] = 2 * self.options.padding + 1
            record[f"edge_{axis}"] = codes("EDGE")[_EDGES[self.options.mode]]
