"""Loss scaling: keeps small gradients above the smallest 16-bit number."""

from __future__ import annotations

import numpy as np

from mpidl.backend import Array
from mpidl.nn import FlatParameters
from mpidl.optim.optimizer import Parameters
from mpidl.optim.state import RunState


class LossScaler:
    """Dynamic loss scaling (Micikevicius et al., 2018).

    The gradient of the loss is multiplied by a power of two. A step whose gradients overflow is
    left out, and the scale halved.

    Args:
        parameters: The flat buffer of the model.
        dynamic: False: the scale is 1 and stays so.
        scale: The first scale.
        interval: Steps without an overflow after which the scale is doubled.
    """

    def __init__(
        self,
        parameters: FlatParameters,
        *,
        dynamic: bool,
        scale: float = 65536.0,
        interval: int = 2000,
    ) -> None:
        self.parameters = parameters
        self.dynamic = dynamic
        self.interval = interval
        self.scale = scale if dynamic else 1.0
        self._good = 0  # steps without an overflow since the scale changed

    def unscale(self, *gradients: Array) -> None:
        """Divide gradients by the scale, in place."""
        if self.scale != 1:
            for array in gradients:
                array *= 1 / self.scale

    def accept(self, shard: Parameters | None = None) -> bool:
        """Whether the step's gradients are finite on all ranks; sets the next scale.

        Args:
            shard: What this rank's optimizer works on, where that is not the whole model.
        """
        if not self.dynamic:
            return True
        shard = shard or self.parameters
        broken = np.array([float(not bool(shard.ops.xp.isfinite(shard.gradients).all()))])
        if shard.reduce is not None:
            shard.reduce(broken)
        if broken[0]:
            self.scale, self._good = max(self.scale / 2, 1.0), 0
            return False
        self._good += 1
        if self._good >= self.interval:
            self.scale, self._good = min(self.scale * 2, 2.0**24), 0
        return True

    def state(self) -> RunState:
        """The scale, and the steps since it changed; replicas that differ have their own."""
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
