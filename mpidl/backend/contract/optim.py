"""Optimizer steps over flat buffers, and norms of their slots."""

from __future__ import annotations

from mpidl.backend.contract.base import Array, Launcher


class OptimOps(Launcher):
    """Fused passes over (n,) buffers."""

    def adam_step(
        self, p: Array, g: Array, m: Array, v: Array, *, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
        step: int, decoupled: bool,
    ) -> None:  # fmt: skip
        """Adam (Kingma and Ba, 2015) in place; step counts from 1; decoupled: AdamW (Loshchilov and Hutter, 2019)."""
        fixes = (1 - beta1**step, 1 - beta2**step)
        self.launch(
            "adam_step",
            p,
            g,
            m,
            v,
            p.size,
            lr,
            beta1,
            beta2,
            eps,
            weight_decay,
            *fixes,
            int(decoupled),
        )

    def adam_direction(
        self, p: Array, g: Array, m: Array, v: Array, out: Array, *, beta1: float, beta2: float, eps: float, weight_decay:
        float,
        step: int,
    ) -> None:  # fmt: skip
        """Out = the step of Adam with decoupled decay before the learning rate; m and v go on."""
        fixes = (1 - beta1**step, 1 - beta2**step)
        self.launch(
            "adam_direction", p, g, m, v, out, p.size, beta1, beta2, eps, weight_decay, *fixes
        )

    def sparse_sgd(self, p: Array, g: Array, lr: float) -> None:
        """P -= lr * g where g is not 0; elements (on a CPU: lines of 16) without a gradient are not written."""
        self.launch("sparse_sgd", p, g, p.size, lr)

    def slot_squares(self, x: Array, starts: Array, stops: Array, out: Array) -> None:
        """Out (slots, float64) = sums of squares of x[starts[s] : stops[s]] (int64)."""
        self.launch("slot_squares", x, starts, stops, out, out.size)

    def slot_scale(self, x: Array, starts: Array, stops: Array, factors: Array) -> None:
        """x[starts[s] : stops[s]] *= factors[s] (float64)."""
        self.launch("slot_scale", x, starts, stops, factors, factors.size)
