"""Squared error."""

from __future__ import annotations

from mpidl.nn.losses.base import WeightedLoss, WeightedOptions


class MSELoss(WeightedLoss):
    """Mean squared error: mean over the elements of (output - target)^2."""

    Options = WeightedOptions
    kind = "mse"
