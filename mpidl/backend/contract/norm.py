"""Normalization."""

from __future__ import annotations

from mpidl.backend.contract.base import Array, Launcher


class NormOps(Launcher):
    """Rows: layer norm (Ba et al., 2016) and RMS norm (Zhang and Sennrich, 2019). Segments: batch, group and instance norm."""

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
        """Out = (x - mean) * rstd * gamma + beta for each row of x (rows, cols); keeps mean and rstd (rows).

        Without center mean is 0: RMS norm. gamma, beta: (cols); beta may be None.
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
        """Out (rows, cols) = gradient of the input. out may not be dy."""
        self.launch("row_norm_backward", dy, x, gamma, mean, rstd, out, *x.shape, int(center))

    def row_norm_parameters(
        self, dy: Array, x: Array, mean: Array, rstd: Array, dgamma: Array, dbeta: Array | None
    ) -> None:
        """Gradients of gamma and beta (cols), overwritten."""
        self.launch("row_norm_parameters", dy, x, mean, rstd, dgamma, dbeta, *x.shape)

    def segment_moments(self, x: Array, mean: Array, m2: Array) -> None:
        """Mean and sum of squared deviations (segments, cols) of x (segments, rows, cols) over its rows."""
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
        """Out = act(x * scale + shift + residual), x (segments, rows, cols), scale and shift (segments, cols)."""
        self.launch("segment_affine", x, scale, shift, residual, out, *x.shape, int(relu))

    def segment_dots(
        self, dy: Array, x: Array, y: Array | None, mean: Array, sum_dy: Array, sum_dyx: Array
    ) -> None:
        """Sums (segments, cols) of dy and of dy * (x - mean); with y, dy is first set to 0 where y <= 0, in place."""
        self.launch("segment_dots", dy, x, y, mean, sum_dy, sum_dyx, *x.shape)

    def segment_dx(self, dy: Array, x: Array, a: Array, b: Array, c: Array, out: Array) -> None:
        """Out = a * dy + b * x + c; a, b, c (segments, cols). out may be dy."""
        self.launch("segment_dx", dy, x, a, b, c, out, *x.shape)
