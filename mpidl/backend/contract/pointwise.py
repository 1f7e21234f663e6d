"""Activations, dropout, softmax and losses between arrays of one shape."""

from __future__ import annotations

from mpidl.backend.contract.base import Array, Launcher

ACTIVATIONS = {"relu": 0, "gelu": 1, "gelu_tanh": 2, "silu": 3, "tanh": 4, "sigmoid": 5}
PAIR_LOSSES = {"mse": 0, "huber": 1, "bce": 2, "mae": 3, "relative_l2": 4}


class PointwiseOps(Launcher):
    """Element by element, or row by row."""

    def add(self, a: Array, b: Array, out: Array, *, relu: bool) -> None:
        """Out = act(a + b), all of one shape; out may be a or b."""
        self.xp.add(a, b, out=out)
        if relu:
            self.act_forward(out, out, "relu")

    def act_forward(self, x: Array, out: Array, kind: str) -> None:
        """Out = act(x); kind: a key of ACTIVATIONS (GELU: Hendrycks and Gimpel, 2016; SiLU: Elfwing et al., 2018)."""
        self.launch("act_forward", x, out, x.size, ACTIVATIONS[kind])

    def act_backward(self, dy: Array, x: Array, y: Array, out: Array, kind: str) -> None:
        """Out = dy * act'(x), from input x and output y = act(x). out may be dy."""
        self.launch("act_backward", dy, x, y, out, x.size, ACTIVATIONS[kind])

    def dropout(self, x: Array, out: Array, keep: float, drawn: Array, stream: int) -> None:
        """Out = x / keep with probability `keep`, else 0 (Srivastava et al., 2014); gradients go the same way.

        drawn: (3,) int64: seed, step, part. The mask is a function of (element, seed, step, stream + part) alone, by
        Philox4x32-10 (Salmon et al., 2011).
        """
        self.launch("dropout", x, out, x.size, keep, drawn, stream)

    def softmax_forward(self, x: Array, out: Array, *, log: bool = False) -> None:
        """Out = softmax of the rows of x (rows, cols), or its logarithm. out may be x."""
        self.launch("softmax_forward", x, out, *x.shape, int(log))

    def softmax_backward(self, dy: Array, y: Array, out: Array, *, log: bool = False) -> None:
        """Gradient of the input of softmax_forward from its output y. out may be dy."""
        self.launch("softmax_backward", dy, y, out, *y.shape, int(log))

    def pair_loss(
        self,
        x: Array,
        target: Array,
        loss: Array,
        dx: Array,
        *,
        kind: str,
        scale: float,
        delta: float = 1.0,
    ) -> None:
        """Loss (rows) = sum over the columns of a loss of x (rows, cols) against target; dx = its gradient * scale.

        kind: "mse" (x - t)^2; "mae" |x - t|; "huber" with threshold delta (Huber, 1964); "bce" binary
        cross-entropy of logits x; "relative_l2" the norm of the row of x - t by that of t (Li et al.,
        2021), alone where the latter is at most delta.
        """
        self.launch("pair_loss", x, target, loss, dx, *x.shape, scale, PAIR_LOSSES[kind], delta)
