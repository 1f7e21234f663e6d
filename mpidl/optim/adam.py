"""Adam and AdamW."""

from __future__ import annotations

from typing import ClassVar

from mpidl.optim.optimizer import Optimizer
from mpidl.options import Fraction, Rate


class Moments(Optimizer.Options, frozen=True):
    """Options of rules with running moments of the gradient.

    Attributes:
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        eps: Added to the root of the second moment.
        weight_decay: L2 penalty, added to the gradients.
    """

    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: Rate = 1e-8


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015)."""

    Options = Moments
    options: Moments
    buffers = ("first", "second")
    decoupled: ClassVar[bool] = False  # whether weight decay acts on the values directly

    def _update(self, lr: float) -> None:
        self.ops.adam_step(
            self.parameters.values,
            self.parameters.gradients,
            self.state["first"],
            self.state["second"],
            lr=lr,
            beta1=self.options.beta1,
            beta2=self.options.beta2,
            eps=self.options.eps,
            weight_decay=self.options.weight_decay,
            step=self.count,
            decoupled=self.decoupled,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    class Options(Moments, frozen=True):
        """Options of adamw.

        Attributes:
            beta1: Decay of the first moment.
            beta2: Decay of the second moment.
            eps: Added to the root of the second moment.
            weight_decay: Share of the values that a step at rate 1 takes away.
        """

    options: Options
    decoupled = True
