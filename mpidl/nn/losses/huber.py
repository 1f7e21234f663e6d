"""Huber loss."""

from __future__ import annotations

from typing import Any

from mpidl.backend import Ops
from mpidl.nn.losses.base import WeightedLoss, WeightedOptions
from mpidl.options import Rate


class HuberLoss(WeightedLoss):
    """Huber loss (Huber, 1964): quadratic for small errors, linear for large ones.

    Mean over the elements of e^2 / 2 where |e| <= delta, else delta * (|e| - delta / 2).
    """

    class Options(WeightedOptions, frozen=True):
        """Options of huber.

        Attributes:
            weights: Factors of the losses of the channels, the last axis of an output; none: all 1.
            delta: Error above which the loss is linear.
        """

        delta: Rate = 1.0

    options: Options
    kind = "huber"

    def __init__(self, ops: Ops, **options: Any) -> None:
        super().__init__(ops, **options)
        self.threshold = self.options.delta
