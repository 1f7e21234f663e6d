"""Binary cross-entropy."""

from __future__ import annotations

from mpidl.nn.losses.base import WeightedLoss, WeightedOptions


class BCEWithLogitsLoss(WeightedLoss):
    """Binary cross-entropy of logits and probabilities, mean over the elements.

    Computed as max(x, 0) - x * target + log(1 + exp(-|x|)), which does not overflow.
    """

    Options = WeightedOptions
    kind = "bce"
