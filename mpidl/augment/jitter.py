"""Changed colors."""

from __future__ import annotations

from mpidl.augment.base import Pointwise
from mpidl.backend import Array, Ops
from mpidl.backend.contract.augment import Drawn
from mpidl.options import Fraction, Place, Section


class Jitter(Pointwise):
    """Changes brightness, contrast and saturation; values are not clipped to those of bytes."""

    name = "jitter"

    class Options(Section, frozen=True):
        """Options of jitter.

        Attributes:
            brightness: Values are multiplied by a factor within 1 - brightness and 1 + brightness,
                before normalization.
            contrast: The same of the distance to the mean gray of the image.
            saturation: The same of the distance to the gray of each pixel; images with 3 channels.
        """

        brightness: Fraction = 0.2
        contrast: Fraction = 0.2
        saturation: Fraction = 0.0

        def check(self, place: Place) -> None:
            """One of them must be wanted."""
            if not (self.brightness or self.contrast or self.saturation):
                raise place.error(
                    f"{place.name('brightness')}, contrast and saturation are all 0",
                    "brightness",
                    remedy="set one above 0, or remove the augmentation",
                )

    options: Options

    def check(self) -> None:
        self.needs_space((2,), "images (height, width, channels)")
        if self.options.saturation and self.samples.channels != 3:
            raise self.error(
                f"changes the saturation, but images have {self.samples.channels} channel(s)",
                "set augment.jitter.saturation = 0",
            )

    def apply(self, ops: Ops, x: Array, drawn: Drawn) -> None:
        options = self.options
        spreads = (options.brightness, options.contrast, options.saturation)
        ops.augment_jitter(x, drawn, self.samples.shift, spreads)
