"""Stochastic gradient descent with momentum and weight decay."""

from __future__ import annotations

from mpidl.optim.optimizer import Optimizer
from mpidl.options import Fraction, Section


class SGD(Optimizer):
    """One fused pass over the flat buffer a step (Sutskever et al., 2013)."""

    class Options(Optimizer.Options, frozen=True):
        """Options of sgd.

        Attributes:
            momentum: Share of the last step that the next one keeps.
            nesterov: Look ahead along the momentum (Nesterov's variant).
            weight_decay: L2 penalty, added to the gradients.
        """

        momentum: Fraction = 0.9
        nesterov: bool = False

    options: Options
    buffers = ("momentum",)

    @classmethod
    def is_sparse(cls, options: Section) -> bool:
        """Whether elements without a gradient keep their values: without momentum and decay."""
        assert isinstance(options, cls.Options)
        return not options.momentum and not options.weight_decay

    def _update(self, lr: float) -> None:
        self.ops.sgd_step(
            self.parameters.values,
            self.parameters.gradients,
            self.state["momentum"],
            lr=lr,
            momentum=self.options.momentum,
            weight_decay=self.options.weight_decay,
            nesterov=self.options.nesterov,
        )
