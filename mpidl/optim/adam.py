"""Adam and AdamW."""

from __future__ import annotations

from mpidl.backend import Ops
from mpidl.optim.optimizer import Optimizer, Parameters


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015); decoupled: AdamW (Loshchilov and Hutter, 2019). State: "first", "second" moments, (n,)."""

    def __init__(
        self,
        parameters: Parameters,
        ops: Ops,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = False,
    ) -> None:
        super().__init__(parameters, ops, "first", "second")
        self.beta1, self.beta2, self.eps, self.weight_decay, self.decoupled = (
            beta1,
            beta2,
            eps,
            weight_decay,
            decoupled,
        )

    def _update(self, lr: float) -> None:
        self.ops.adam_step(
            self.parameters.values,
            self.parameters.gradients,
            self.state["first"],
            self.state["second"],
            lr=lr,
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            step=self.count,
            decoupled=self.decoupled,
        )
