"""Weighted means of two samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpidl.augment.mixing import Mixing, beta_quantiles, fixed
from mpidl.backend import Array, Ops
from mpidl.backend.contract.augment import Drawn


class Mixup(Mixing):
    """Weighted means of two samples and of their targets (Zhang et al., 2018)."""

    name = "mixup"

    def check(self) -> None:
        self.refuse_many_classes()

    @property
    def quantiles(self) -> NDArray[np.int64]:
        return fixed(beta_quantiles(self.options.alpha))

    def apply(
        self, ops: Ops, x: Array, other: Array, share: Array, table: Array, drawn: Drawn
    ) -> None:
        ops.augment_mixup(x, other, share, table, drawn, self.chance)
