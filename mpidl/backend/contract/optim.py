"""Optimizer steps over flat buffers, and norms of their tensors."""

from __future__ import annotations

from mpidl.backend.array import Array
from mpidl.backend.contract.base import Launcher


class OptimOps(Launcher):
    """Fused passes over (n,) buffers."""

    def round_copy(self, x: Array, out: Array) -> None:
        """out (n, 16 bits) = x (n, float32), rounded to nearest even; on a GPU."""
        self.launch("round_copy", x, out, x.size)

    def sgd_step(
        self,
        p: Array,
        g: Array,
        v: Array,
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        nesterov: bool,
    ) -> None:
        """SGD in place: g' = g + weight_decay p; v = momentum v + g'; p -= lr v.

        With nesterov p -= lr (g' + momentum v).
        """
        numbers = (lr, momentum, weight_decay)
        self.launch("sgd_step", p, g, v, p.size, *numbers, int(nesterov))

    def adam_step(
        self,
        p: Array,
        g: Array,
        m: Array,
        v: Array,
        *,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        step: int,
        decoupled: bool,
    ) -> None:
        """Adam (Kingma and Ba, 2015) in place.

        Args:
            p: Parameters.
            g: Gradients.
            m: First moments.
            v: Second moments.
            lr: Learning rate.
            beta1: Decay rate of m.
            beta2: Decay rate of v.
            eps: Added to the root of v.
            weight_decay: Coefficient.
            step: Counts from 1.
            decoupled: AdamW (Loshchilov and Hutter, 2019).
        """
        numbers = (lr, beta1, beta2, eps, weight_decay, 1 - beta1**step, 1 - beta2**step)
        self.launch("adam_step", p, g, m, v, p.size, *numbers, int(decoupled))

    def adam_direction(
        self,
        p: Array,
        g: Array,
        m: Array,
        v: Array,
        out: Array,
        *,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        step: int,
    ) -> None:
        """out = the update of AdamW before the learning rate; m and v advance as in `adam_step`."""
        numbers = (beta1, beta2, eps, weight_decay, 1 - beta1**step, 1 - beta2**step)
        self.launch("adam_direction", p, g, m, v, out, p.size, *numbers)

    def sparse_sgd(self, p: Array, g: Array, lr: float) -> None:
        """p -= lr * g where g is not 0.

        Elements (on a CPU: lines of 16) without a gradient are not written.
        """
        self.launch("sparse_sgd", p, g, p.size, lr)

    def slot_squares(self, x: Array, starts: Array, stops: Array, out: Array) -> None:
        """out (slots, float64) = sums of squares of x[starts[s] : stops[s]] (int64)."""
        self.launch("slot_squares", x, starts, stops, out, out.size)

    def slot_scale(self, x: Array, starts: Array, stops: Array, factors: Array) -> None:
        """x[starts[s] : stops[s]] *= factors[s] (float64)."""
        self.launch("slot_scale", x, starts, stops, factors, factors.size)
