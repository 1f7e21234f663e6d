"""LAMB: AdamW for large batches."""

from __future__ import annotations

import numpy as np

from mpidl.optim.adam import Moments
from mpidl.optim.tensors import PerTensorOptimizer
from mpidl.options import Rate


class LAMB(PerTensorOptimizer):
    """AdamW in which each tensor's step is scaled to the tensor's norm (You et al., 2020)."""

    class Options(Moments, frozen=True):
        """Options of lamb.

        Attributes:
            beta1: Decay of the first moment.
            beta2: Decay of the second moment.
            eps: Added to the root of the second moment.
            weight_decay: Decay of matrices; biases and scales of norms do not decay.
        """

        eps: Rate = 1e-6

    options: Options
    buffers = ("first", "second")

    def _update(self, lr: float) -> None:
        options, values, direction = self.options, self.parameters.values, self._direction
        self.ops.adam_direction(
            values,
            self.parameters.gradients,
            self.state["first"],
            self.state["second"],
            direction,
            weight_decay=0.0,
            step=self.count,
            beta1=options.beta1,
            beta2=options.beta2,
            eps=options.eps,
        )
        self._add_decay(direction)
        weights, steps = self.tensors.norms(values), self.tensors.norms(direction)
        scaled = self.tensors.is_matrix & (weights > 0) & (steps > 0)
        ratios = np.where(scaled, weights / np.where(scaled, steps, 1), 1.0)
        self.tensors.scale(direction, ratios * lr)
        self.ops.xp.subtract(values, direction, out=values)
