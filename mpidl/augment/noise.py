"""Noise."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from mpidl.augment.base import Pointwise
from mpidl.backend import Array, Ops
from mpidl.backend.contract.augment import Drawn
from mpidl.options import Section

Std = Annotated[float, Meta(gt=0, le=100)]


class Noise(Pointwise):
    """Adds independent normal numbers to all inputs."""

    name = "noise"

    class Options(Section, frozen=True):
        """Options of noise.

        Attributes:
            std: Standard deviation, of inputs after normalization: 0.1 is a tenth of theirs.
        """

        std: Std = 0.1

    options: Options

    def apply(self, ops: Ops, x: Array, drawn: Drawn) -> None:
        ops.augment_noise(x, drawn, self.options.std)
