"""LARS: momentum SGD for large batches."""

from __future__ import annotations

import numpy as np

from mpidl.optim.sgd import SGD
from mpidl.optim.tensors import PerTensorOptimizer
from mpidl.options import Rate


class LARS(PerTensorOptimizer):
    """Each tensor's gradient is scaled to `trust` of the tensor's norm (You et al., 2017)."""

    class Options(SGD.Options, frozen=True):
        """Options of lars.

        Attributes:
            momentum: Share of the last step that the next one keeps.
            nesterov: Look ahead along the momentum (Nesterov's variant).
            weight_decay: Decay of matrices; biases and scales of norms do not decay.
            trust: Norm of a step at rate 1, as a share of the norm of its tensor.
        """

        trust: Rate = 0.001

    options: Options
    buffers = ("momentum",)

    def _update(self, lr: float) -> None:
        options, values = self.options, self.parameters.values
        weights = self.tensors.norms(values)
        gradients = self.tensors.norms(self.parameters.gradients)
        size = gradients + options.weight_decay * weights
        scaled = self.tensors.is_matrix & (weights > 0) & (size > 0)
        ratios = np.where(scaled, options.trust * weights / np.where(scaled, size, 1), 1.0)
        self._direction[...] = self.parameters.gradients
        self._add_decay(self._direction)
        self.tensors.scale(self._direction, ratios)
        self.ops.sgd_step(
            values,
            self._direction,
            self.state["momentum"],
            lr=lr,
            momentum=options.momentum,
            weight_decay=0.0,
            nesterov=options.nesterov,
        )
