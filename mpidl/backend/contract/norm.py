"""Normalization."""

from __future__ import annotations

from mpidl.backend.array import Array
from mpidl.backend.contract.base import Launcher


class NormOps(Launcher):
    """Normalization of rows and of segments.

    Rows: layer norm (Ba et al., 2016) and RMS norm (Zhang and Sennrich, 2019). Segments: batch,
    group and instance norm.
    """

    def row_norm_forward(
        self,
        x: Array,
        gamma: Array,
        beta: Array | None,
        out: Array,
        mean: Array,
        rstd: Array,
        *,
        eps: float,
        center: bool,
    ) -> None:
        """out = (x - mean) * rstd * gamma + beta for each row.

        Args:
            x: (rows, cols).
            gamma: (cols,).
            beta: (cols,) or None.
            out: (rows, cols).
            mean: (rows,), overwritten.
            rstd: (rows,), overwritten: 1 / sqrt(variance + eps).
            eps: See rstd.
            center: False: mean is 0, RMS norm.
        """
        self.launch("row_norm_forward", x, gamma, beta, out, mean, rstd, *x.shape, eps, int(center))

    def row_norm_backward(
        self,
        dy: Array,
        x: Array,
        gamma: Array,
        mean: Array,
        rstd: Array,
        out: Array,
        *,
        center: bool,
    ) -> None:
        """out (rows, cols) = gradient of the input. out may not be dy."""
        self.launch("row_norm_backward", dy, x, gamma, mean, rstd, out, *x.shape, int(center))

    def row_norm_parameters(
        self, dy: Array, x: Array, mean: Array, rstd: Array, dgamma: Array, dbeta: Array | None
    ) -> None:
        """dgamma, dbeta (cols) = gradients of gamma and beta, overwritten."""
        self.launch("row_norm_parameters", dy, x, mean, rstd, dgamma, dbeta, *x.shape)

    def segment_moments(self, x: Array, mean: Array, m2: Array) -> None:
        """Statistics of x (segments, rows, cols) over its rows.

        mean, m2: (segments, cols), mean and sum of squared deviations, overwritten.
        """
        self.launch("segment_moments", x, mean, m2, *x.shape)

    def segment_affine(
        self,
        x: Array,
        scale: Array,
        shift: Array,
        residual: Array | None,
        out: Array,
        *,
        relu: bool,
    ) -> None:
        """out = act(x * scale + shift + residual).

        x: (segments, rows, cols); scale, shift: (segments, cols).
        """
        self.launch("segment_affine", x, scale, shift, residual, out, *x.shape, int(relu))

    def segment_dots(
        self, dy: Array, x: Array, y: Array | None, mean: Array, sum_dy: Array, sum_dyx: Array
    ) -> None:
        """sum_dy, sum_dyx (segments, cols) = sums of dy and of dy * (x - mean).

        With y, dy is first set to 0 where y <= 0, in place.
        """
        self.launch("segment_dots", dy, x, y, mean, sum_dy, sum_dyx, *x.shape)

    def segment_dx(self, dy: Array, x: Array, a: Array, b: Array, c: Array, out: Array) -> None:
        """out = a * dy + b * x + c; a, b, c (segments, cols). out may be dy."""
        self.launch("segment_dx", dy, x, a, b, c, out, *x.shape)
