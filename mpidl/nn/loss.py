"""Losses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpidl.backend import Array, Ops


@dataclass(frozen=True)
class LossResult:
    """Sums over this rank's part of a batch, and the gradient of the mean over the global batch."""

    total: float
    correct: int
    gradient: Array


class SoftmaxCrossEntropy:
    """Mean over the batch of -log softmax(logits)[label]."""

    def __init__(self, ops: Ops) -> None:
        self.ops, self.space = ops, ops.workspace()

    def __call__(self, logits: Array, labels: Array, global_count: int) -> LossResult:
        """logits: (n, classes); labels: (n,) int64 in [0, classes); global_count: samples in the batch over all ranks."""
        n = logits.shape[0]
        loss = self.space.get("loss", (n,), logits.dtype)
        hit = self.space.get("hit", (n,), np.uint8)
        gradient = self.space.get("gradient", logits.shape, logits.dtype)
        self.ops.softmax_cross_entropy(logits, labels, loss, gradient, hit, 1.0 / max(global_count, 1))
        xp = self.ops.xp
        return LossResult(float(loss.sum(dtype=np.float64)), int(xp.count_nonzero(hit)), gradient)
