"""Losses, fused with their gradients."""

from __future__ import annotations

from mpidl.backend.array import Array
from mpidl.backend.contract.base import Launcher
from mpidl.backend.headers import codes

PAIR_LOSSES = codes("LOSS")


class LossOps(Launcher):
    """Losses of rows against labels, and between arrays of one shape."""

    def softmax_cross_entropy(
        self,
        logits: Array,
        labels: Array,
        loss: Array,
        dlogits: Array,
        hit: Array,
        scale: float,
        smoothing: float = 0.0,
    ) -> None:
        """Softmax cross-entropy, its gradient and the correct predictions in one pass.

        Args:
            logits: (n, c).
            labels: (n,) int64; rows with a negative label count nothing.
            loss: (n,), -sum of target * log softmax(logits), where target is 1 - smoothing at the
                label, and smoothing / c everywhere (Szegedy et al., 2016).
            dlogits: (n, c), the gradient * scale.
            hit: (n,) uint8, 1 where the largest logit is that of the label.
            scale: Factor of the gradient.
            smoothing: Label smoothing.

        Raises:
            BackendError: A label has no class (on a CPU).
        """
        arrays = (logits, labels, loss, dlogits, hit)
        self.launch("softmax_cross_entropy", *arrays, *logits.shape, scale, smoothing)

    def softmax_cross_entropy_shares(
        self,
        logits: Array,
        shares: Array,
        loss: Array,
        dlogits: Array,
        hit: Array,
        scale: float,
        smoothing: float = 0.0,
    ) -> None:
        """`softmax_cross_entropy` with a share of each class instead of one label.

        Args:
            logits: (n, c).
            shares: (n, c), at least 0; their sum is the weight of the row.
            loss: (n,).
            dlogits: (n, c), the gradient * scale.
            hit: (n,) uint8, 1 where the largest logit is that of the largest share.
            scale: Factor of the gradient.
            smoothing: Label smoothing.
        """
        arrays = (logits, shares, loss, dlogits, hit)
        self.launch("softmax_cross_entropy_shares", *arrays, *logits.shape, scale, smoothing)

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
        """A loss of each row of x against target, and its gradient.

        Args:
            x: (rows, cols).
            target: (rows, cols).
            loss: (rows,), the sum over the columns.
            dx: (rows, cols), the gradient * scale.
            kind: "mse" (x - t)^2; "mae" |x - t|; "huber" with threshold delta (Huber, 1964); "bce"
                binary cross-entropy of logits x; "relative_l2" the norm of the row of x - t by that
                of t (Li et al., 2021), alone where the latter is at most delta.
            scale: Factor of the gradient.
            delta: See `kind`.
        """
        kind_code = PAIR_LOSSES[kind]
        self.launch("pair_loss", x, target, loss, dx, *x.shape, scale, kind_code, delta)
