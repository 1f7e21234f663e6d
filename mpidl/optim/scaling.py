"""Loss scaling: keeps small gradients above the smallest 16-bit number."""

from __future__ import annotations

import numpy as np

from mpidl.backend import Array
from mpidl.nn import FlatParameters
from mpidl.optim.optimizer import Parameters
from mpidl.optim.state import RunState


class LossScaler:
    """Dynamic loss scaling (Micikevicius et al., 2018): a power of two by which the gradient of the loss is multiplied.

    scale: halved after a step whose gradients overflowed, which is then left out, and doubled after `interval` steps without
    one. dynamic: False keeps the scale, 1 where nothing needs scaling.
    """

    def __init__(
        self,
        parameters: FlatParameters,
        *,
        dynamic: bool,
        scale: float = 65536.0,
        interval: int = 2000,
    ) -> None:
        self.parameters, self.dynamic, self.interval = parameters, dynamic, interval
        self.scale, self._good = scale if dynamic else 1.0, 0

    def unscale(self, *gradients: Array) -> None:
        """Divide gradients by the scale, in place."""
        if self.scale != 1:
            for array in gradients:
                array *= 1 / self.scale

    def accept(self, part: Parameters | None = None) -> bool:
        """Whether the step's gradients, those of all ranks together, are finite and may be used; sets the next scale.

        part: what this rank's optimizer works on, where that is not the whole model.
        """
        if not self.dynamic:
            return True
        part = part or self.parameters
        broken = np.array([float(not bool(part.ops.xp.isfinite(part.gradients).all()))])
        if part.reduce is not None:
            part.reduce(broken)
        if broken[0]:
            self.scale, self._good = max(self.scale / 2, 1.0), 0
            return False
        self._good += 1
        if self._good >= self.interval:
            self.scale, self._good = min(self.scale * 2, 2.0**24), 0
        return True

    def state(self) -> RunState:
        """The scale, and the steps since it last changed; ranks whose replicas differ have scales of their own."""
        state = RunState()
        if self.dynamic:
            state.set_numbers(own=True, scale=self.scale, good=self._good)
        return state

    def load_state(self, state: RunState) -> None:
        """Go on with a saved scale."""
        if not self.dynamic:  # the run had 16-bit numbers before
            return
        self.scale = state.take_number("scale", self.scale)
        self._good = int(state.take_number("good", self._good))
