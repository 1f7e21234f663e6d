"""Binary cross-entropy."""

from __future__ import annotations

from mpidl.nn.losses.base import RegressionLoss


class BCEWithLogitsLoss(RegressionLoss):
    """Binary cross-entropy of logits, mean over the elements; targets are probabilities.

    Computed as max(x, 0) - x * target + log(1 + exp(-|x|)), which is finite for any logit x.
    """

    kind = "bce"
