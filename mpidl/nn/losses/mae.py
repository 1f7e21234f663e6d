"""Absolute error."""

from __future__ import annotations

from mpidl.nn.losses.base import RegressionLoss


class MAELoss(RegressionLoss):
    """Mean absolute error: mean over the elements of |output - target|."""

    kind = "mae"
