"""Optimizers for large batches: the step of each tensor is scaled to the size of that tensor."""

from __future__ import annotations

import numpy as np

from mpidl.backend import Array, Ops
from mpidl.optim.optimizer import Optimizer, Parameters, Slots


class _LayerWise(Optimizer):
    def __init__(self, parameters: Parameters, ops: Ops, weight_decay: float, *names: str) -> None:
        super().__init__(parameters, ops, *names)
        self.slots, self.weight_decay = Slots(parameters, ops), weight_decay
        self._work = [ops.xp.zeros_like(parameters.values) for _ in range(2)]

    def rebind(self, parameters: Parameters) -> None:
        super().rebind(parameters)
        self.slots = Slots(parameters, self.ops)
        self._work = [self.ops.xp.zeros_like(parameters.values) for _ in range(2)]

    def _add_decay(self, direction: Array) -> None:
        """Weight decay for tensors with more than one axis."""
        if self.weight_decay:
            decayed = self._work[1]
            decayed[...] = self.parameters.values
            self.slots.scale(decayed, self.slots.weight * self.weight_decay)
            self.ops.add(direction, decayed, direction, relu=False)


class LARS(_LayerWise):
    """Momentum SGD in which each tensor's gradient is scaled to `trust` of the tensor's norm (You et al., 2017). State:
    "momentum"."""

    def __init__(
        self,
        parameters: Parameters,
        ops: Ops,
        *,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        nesterov: bool = False,
        trust: float = 0.001,
    ) -> None:
        super().__init__(parameters, ops, weight_decay, "momentum")
        self.momentum, self.nesterov, self.trust = momentum, nesterov, trust

    def _update(self, lr: float) -> None:
        values, work = self.parameters.values, self._work[0]
        weights, gradients = self.slots.norms(values), self.slots.norms(self.parameters.gradients)
        size = gradients + self.weight_decay * weights
        scaled = self.slots.weight & (weights > 0) & (size > 0)
        ratios = np.where(scaled, self.trust * weights / np.where(scaled, size, 1), 1.0)
        work[...] = self.parameters.gradients
        self._add_decay(work)
        self.slots.scale(work, ratios)
        momentum = self.state["momentum"]
        self.ops.sgd_step(
            values,
            work,
            momentum,
            lr=lr,
            momentum=self.momentum,
            weight_decay=0.0,
            nesterov=self.nesterov,
        )


class LAMB(_LayerWise):
    """AdamW in which each tensor's step is scaled to the tensor's norm (You et al., 2020). State: "first", "second"."""

    def __init__(
        self,
        parameters: Parameters,
        ops: Ops,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, ops, weight_decay, "first", "second")
        self.beta1, self.beta2, self.eps = beta1, beta2, eps

    def _update(self, lr: float) -> None:
        values, work = self.parameters.values, self._work[0]
        moments = self.state["first"], self.state["second"]
        rates = {"beta1": self.beta1, "beta2": self.beta2, "eps": self.eps}
        self.ops.adam_direction(
            values,
            self.parameters.gradients,
            *moments,
            work,
            weight_decay=0.0,
            step=self.count,
            **rates,
        )
        self._add_decay(work)
        weights, steps = self.slots.norms(values), self.slots.norms(work)
        scaled = self.slots.weight & (weights > 0) & (steps > 0)
        self.slots.scale(work, np.where(scaled, weights / np.where(scaled, steps, 1), 1.0) * lr)
        self.ops.xp.subtract(values, work, out=values)
