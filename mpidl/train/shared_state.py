"""What the layers of a model share across ranks besides gradients: statistics and random masks."""

from __future__ import annotations

from functools import partial

import numpy as np

from mpidl.collectives import Group, all_reduce
from mpidl.comm.context import Context
from mpidl.nn import BatchNorm, Model
from mpidl.optim import RunState


class SharedState:
    """Keeps `model.runtime` and the running statistics of batch norms.

    Sums the batch statistics of synchronized layers over the ranks, and averages the running
    statistics of the others.

    Args:
        model: The model.
        context: The ranks.
        seed: Of random masks.

    Attributes:
        replicas_differ: Whether each rank has running statistics of its own.
    """

    def __init__(self, model: Model, context: Context, seed: int) -> None:
        self.model = model
        self.context = context
        model.runtime.seed = seed
        several = context.size > 1 and model.parameters.state.size > 0
        self.group = Group(context.comm, name="statistics") if several else None
        self.replicas_differ = any(
            isinstance(layer, BatchNorm) and not layer.needs_collective for layer in model.walk()
        )
        if self.group is not None and model.needs_collective:
            model.runtime.reduce = partial(all_reduce, comm=self.group, name="batch statistics")

    def begin(self, step: int, index: int, count: int) -> None:
        """Before a pass.

        Args:
            step: Of the run.
            index: Of the micro-batch among those of this rank.
            count: Micro-batches of this rank in a step.
        """
        self.model.runtime.step = step
        self.model.runtime.micro_batch = self.context.rank * count + index

    def state(self) -> RunState:
        """This rank's running statistics where they differ, copied: `synchronize` changes them."""
        if self.group is None or not self.replicas_differ:
            return RunState()
        statistics = self.model.ops.to_host(self.model.parameters.state)
        return RunState(own={"statistics": np.array(statistics)})

    def load_state(self, state: RunState) -> None:
        """Resume from saved statistics."""
        saved = state.take("statistics") if self.replicas_differ else None
        if saved is not None:
            self.model.parameters.state[...] = self.model.ops.to_device(saved)

    def synchronize(self) -> None:
        """Before state is used or saved: average the running statistics that differ. Collective."""
        if self.group is not None and self.replicas_differ:
            state = self.model.parameters.state
            all_reduce(state, comm=self.group, op="mean", name="running statistics")
