"""Relative L2 error."""

from __future__ import annotations

from typing import Any

from mpidl.backend import Ops
from mpidl.nn.losses.base import RegressionLoss
from mpidl.options import NotNegativeNumber


class RelativeL2Loss(RegressionLoss):
    """Relative error of each sample in the L2 norm (Li et al., 2021): |output - target| / |target|.

    Fields of any size and amplitude weigh the same. A target of (almost) zero has no relative
    error: its sample counts by the absolute one, |output - target|, which is finite.
    """

    class Options(RegressionLoss.Options, frozen=True):
        """Options of relative_l2.

        Attributes:
            eps: Norm of a target up to which its sample counts by its absolute error.
        """

        eps: NotNegativeNumber = 1e-6

    options: Options
    kind = "relative_l2"
    averages_elements = False

    def __init__(self, ops: Ops, **options: Any) -> None:
        super().__init__(ops, **options)
        self.threshold = self.options.eps
