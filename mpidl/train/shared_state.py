"""What the layers of a model share with those of other ranks besides gradients: statistics and random masks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.collectives import Group, all_reduce
from mpidl.comm.context import Context
from mpidl.nn import BatchNorm, Model
from mpidl.optim import RunState


class SharedState:
    """Keeps `model.runtime`, sums the statistics of synchronized layers over the ranks, and averages those of the others."""

    def __init__(self, model: Model, context: Context, seed: int) -> None:
        self.model, self.context = model, context
        model.runtime.seed = seed
        several = context.size > 1 and model.parameters.state.size > 0
        self.group = Group(context.comm, name="statistics") if several else None
        self.replicas_differ = any(
            isinstance(layer, BatchNorm) and not layer.needs_collective for layer in model.walk()
        )
        if self.group is not None and model.needs_collective:
            model.runtime.reduce = self._sum

    def begin(self, step: int, index: int, count: int) -> None:
        """Before micro-batch `index` of this rank's `count` in a step."""
        self.model.runtime.step, self.model.runtime.micro_batch = (
            step,
            self.context.rank * count + index,
        )

    def state(self) -> RunState:
        """This rank's running statistics where they differ, copied: `settle` changes them."""
        if self.group is None or not self.replicas_differ:
            return RunState()
        return RunState(
            own={"statistics": np.array(self.model.ops.to_host(self.model.parameters.state))}
        )

    def load_state(self, state: RunState) -> None:
        """Go on with saved statistics."""
        saved = state.take("statistics") if self.replicas_differ else None
        if saved is not None:
            self.model.parameters.state[...] = self.model.ops.to_device(saved)

    def synchronize(self) -> None:
        """Before state is used or saved: the mean of the ranks' running statistics where they differ. Collective."""
        if self.group is not None and self.replicas_differ:
            all_reduce(
                self.model.parameters.state, comm=self.group, op="mean", name="running statistics"
            )

    def _sum(self, values: NDArray[Any]) -> None:
        all_reduce(values, comm=self.group, name="batch statistics")
