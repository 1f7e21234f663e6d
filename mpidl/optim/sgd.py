"""Stochastic gradient descent with momentum and weight decay."""

from __future__ import annotations

from mpidl.backend import Ops
from mpidl.optim.optimizer import Optimizer, Parameters


class SGD(Optimizer):
    """One fused pass over the flat buffer a step (Sutskever et al., 2013). State: "momentum", (n,)."""

    def __init__(
        self,
        parameters: Parameters,
        ops: Ops,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(parameters, ops, "momentum")
        self.momentum, self.weight_decay, self.nesterov = momentum, weight_decay, nesterov

    def _update(self, lr: float) -> None:
        self.ops.sgd_step(
            self.parameters.values,
            self.parameters.gradients,
            self.state["momentum"],
            lr=lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )
