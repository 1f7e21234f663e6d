"""Quarter turns and reflections of fields, with the vectors in them."""

from __future__ import annotations

from typing import Any

from mpidl.augment.base import Moving
from mpidl.options import NotNegative, Place, Section

Pairs = tuple[tuple[NotNegative, NotNegative], ...]


class Rotate(Moving):
    """Turns and mirrors fields in the plane of their last two axes.

    Components of vectors are exchanged, and change their sign, as the axes do; so the laws of an
    isotropic system hold for the results too.
    """

    name = "rotate"

    class Options(Section, frozen=True):
        """Options of rotate.

        Attributes:
            turns: By 0, 90, 180 or 270 degrees; fields must be square.
            reflect: Mirrored along each axis.
            vectors: Pairs of channels of the input: components of a vector along the last axis but
                one and along the last axis.
            target_vectors: The same of targets that are fields.
        """

        turns: bool = True
        reflect: bool = True
        vectors: Pairs = ()
        target_vectors: Pairs = ()

        def check(self, place: Place) -> None:
            """One of the two must be wanted."""
            if not (self.turns or self.reflect):
                raise place.error(
                    f"{place.name('turns')} and {place.name('reflect')} are both false",
                    "turns",
                    remedy="set one to true, or remove the augmentation",
                )

    options: Options

    def check(self) -> None:
        super().check()
        samples, options = self.samples, self.options
        self.needs_space((2, 3), "fields (height, width, channels)")
        if options.turns and samples.taken[-1] != samples.taken[-2]:
            raise self.error(
                f"turns fields that are not square: {samples.taken_shape}",
                "set augment.rotate.turns = false (mirrored fields only)",
            )
        self._check_pairs("vectors", options.vectors, samples.channels)
        if options.target_vectors and not samples.has_field_targets:
            raise self.error(
                f"has target_vectors, but targets of the shape {samples.target_shape} are no "
                "fields like the inputs",
                "remove augment.rotate.target_vectors",
            )
        if options.target_vectors:
            self._check_pairs("target_vectors", options.target_vectors, samples.target_channels)

    def _check_pairs(self, key: str, pairs: Pairs, channels: int) -> None:
        named = [channel for pair in pairs for channel in pair]
        if len(set(named)) < len(named) or any(channel >= channels for channel in named):
            raise self.error(
                f"has {key} = {[list(pair) for pair in pairs]}, but there are {channels} channels",
                f"name each channel once, from 0 to {channels - 1}",
            )

    def place(self, record: Any) -> None:
        record["turn"] = self.options.turns + 2 * self.options.reflect
