"""Relative L2 error."""

from __future__ import annotations

from typing import Any

from mpidl.backend import Ops
from mpidl.nn.losses.base import RegressionLoss
from mpidl.options import NotNegativeNumber


class RelativeL2Loss(RegressionLoss):
    """Relative L2 error (Li et al., 2021): ||output - target|| / ||target|| of each sample.

    Samples of any amplitude have the same weight. Where the target is zero the relative error is
    undefined: such a sample contributes its absolute error, ||output - target||.
    """

    class Options(RegressionLoss.Options, frozen=True):
        """Options of relative_l2.

        Attributes:
            eps: Largest norm of a target that is treated as zero.
        """

        eps: NotNegativeNumber = 1e-6

    options: Options
    kind = "relative_l2"
    averages_elements = False

    def __init__(self, ops: Ops, **options: Any) -> None:
        super().__init__(ops, **options)
        self.threshold = self.options.eps
