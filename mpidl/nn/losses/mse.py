"""Squared error."""

from __future__ import annotations

from mpidl.nn.losses.base import RegressionLoss


class MSELoss(RegressionLoss):
    """Mean squared error: mean over the elements of (output - target)^2."""

    kind = "mse"
