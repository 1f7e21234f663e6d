"""Dense layers: matrix products with bias and activation."""

from __future__ import annotations

from abc import abstractmethod

from mpidl.backend.array import Array
from mpidl.backend.contract.pointwise import PointwiseOps


class DenseOps(PointwiseOps):
    """Matrix products and what layers make of them."""

    @abstractmethod
    def matmul(
        self,
        a: Array,
        b: Array,
        out: Array,
        bias: Array | None = None,
        *,
        relu: bool = False,
        accumulate: bool = False,
    ) -> None:
        """out = act(a @ b + bias), or out += a @ b.

        Args:
            a: (m, k), a view with any strides, as the next two.
            b: (k, n).
            out: (m, n), overwritten.
            bias: (n,).
            relu: ReLU behind it.
            accumulate: Add to `out`; without a bias and ReLU.

        Raises:
            BackendError: The shapes do not fit.
        """

    def dense_forward(self, x: Array, w: Array, b: Array | None, out: Array, *, relu: bool) -> None:
        """out (n, o) = act(x (n, i) @ w (i, o) + b (o))."""
        self.matmul(x, w, out, b, relu=relu)

    def dense_backward(
        self, x: Array, w: Array, dy: Array, dw: Array, db: Array | None, dx: Array | None
    ) -> None:
        """Gradients of a dense layer without its activation; all overwritten.

        Args:
            x: (n, i), the input.
            w: (i, o).
            dy: (n, o), gradient of the output.
            dw: x.T @ dy.
            db: Column sums of dy; None: not wanted.
            dx: dy @ w.T; None: not wanted.
        """
        self.matmul(x.T, dy, dw)
        if db is not None:
            self.column_sums(dy, db)
        if dx is not None:
            self.matmul(dy, w.T, dx)
