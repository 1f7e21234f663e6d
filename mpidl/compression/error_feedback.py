"""Error feedback: what compression left out of a bucket is added to it next time (Seide et al., 2014; Karimireddy et al. 2019).

Without it biased compressors (sign, top-k, PowerSGD) need not converge; with it they do, at nearly the rate of plain SGD.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.collectives import Group
from mpidl.compression import kernels
from mpidl.compression.compressor import Compressor, Layout, Plain


class ErrorFeedback(Compressor):
    """Wraps a compressor; keeps one residual (n,) float32 per bucket and rank."""

    def __init__(self, inner: Plain) -> None:
        super().__init__()
        self.inner, self.on_device = inner, inner.on_device
        self.residuals: dict[str, NDArray[Any]] = {}

    @property
    def sent(self) -> int:  # type: ignore[override]
        """Bytes that this rank has put on the wire so far."""
        return self.inner.sent

    @sent.setter
    def sent(self, value: int) -> None:
        if value:
            self.inner.sent = value

    def reduce(self, values: NDArray[Any], group: Group, key: str, layout: Layout = ()) -> None:
        """Add the residual, reduce, and keep what the others did not get. Values that are not finite leave no residual."""
        residual = self.residuals.get(key)
        if residual is None or residual.size != values.size:
            residual = self.residuals[key] = np.zeros_like(values)
        kernels.add_and_keep(values, residual)
        self.inner.reduce(values, group, key, layout)
        self.inner.take_own(residual)
        if self.inner.poisoned:
            residual[~np.isfinite(residual)] = 0
