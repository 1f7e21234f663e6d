"""Absolute error."""

from __future__ import annotations

from mpidl.nn.losses.base import WeightedLoss, WeightedOptions


class MAELoss(WeightedLoss):
    """Mean absolute error: mean over the elements of |output - target|."""

    Options = WeightedOptions
    kind = "mae"
