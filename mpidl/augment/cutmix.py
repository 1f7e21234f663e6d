"""Boxes of other images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpidl.augment.mixing import Alpha, Mixing, beta_quantiles, fixed
from mpidl.backend import Array, Ops
from mpidl.backend.contract.augment import Drawn
from mpidl.options import Fraction


class Cutmix(Mixing):
    """A box of an image becomes that of another; targets are mixed by area (Yun et al., 2019).

    Targets that are fields or masks get the same box instead.
    """

    name = "cutmix"

    class Options(Mixing.Options, frozen=True):
        """Options of cutmix.

        Attributes:
            alpha: The area of the box is drawn from Beta(alpha, alpha); what lies beyond the edge
                of the image is left out.
            probability: Of a box in an image.
        """

        alpha: Alpha = 1.0
        probability: Fraction = 1.0

    def check(self) -> None:
        self.needs_space((2,), "images (height, width, channels)")
        if not self.samples.has_field_targets:
            self.refuse_many_classes()

    @property
    def quantiles(self) -> NDArray[np.int64]:
        return fixed(np.sqrt(beta_quantiles(self.options.alpha)))

    def apply(
        self, ops: Ops, x: Array, other: Array, share: Array, table: Array, drawn: Drawn
    ) -> None:
        ops.augment_cutmix(x, other, share, table, drawn, self.chance)

    def mix_fields(self, ops: Ops, y: Array, other: Array, table: Array, drawn: Drawn) -> bool:
        if not self.samples.has_field_targets:
            return False
        shape = (len(y), *self.samples.taken, self.samples.target_channels)
        share = ops.xp.empty(len(y), y.dtype)
        pair = y.reshape(shape), other.reshape(shape)
        ops.augment_cutmix(*pair, share, table, drawn, self.chance)
        return True
