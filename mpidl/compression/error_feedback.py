"""Error feedback: what compression left out of a bucket is added to it next time (Seide et al., 2014; Karimireddy et al. 2019).

Without it biased compressors (sign, top-k, PowerSGD) need not converge; with it they do, at nearly the rate of plain SGD.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.backend import ops_for
from mpidl.collectives import Group
from mpidl.compression.compressor import (
    Compressor,
    Layout,
    StatelessCompressor,
    fitting,
    take_all,
    to_host,
)
from mpidl.optim import RunState


class ErrorFeedback(Compressor):
    """Wraps a compressor; keeps one residual (n,) float32 per bucket and rank."""

    def __init__(self, inner: StatelessCompressor) -> None:
        super().__init__(inner.options)
        self.inner = inner
        self.on_device = inner.on_device
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
        residual = self.residuals[key] = fitting(self.residuals.get(key), values.shape, values)
        ops_for(values).add_and_keep(values, residual)
        self.inner.reduce(values, group, key, layout)
        self.inner.take_own(residual)
        if self.inner.poisoned:
            residual[~np.isfinite(residual)] = 0

    def state(self) -> RunState:
        """Residuals, and the state of the compressor itself."""
        state = RunState(own=to_host(self.residuals, "residual"))
        state.add("inner", self.inner.state())
        return state

    def load_state(self, state: RunState) -> None:
        """Go on from what `state` returned."""
        self.residuals = take_all(state, "residual")
        inner = state.take_section("inner")
        self.inner.load_state(inner)
        state.add("inner", inner)  # what it has left
