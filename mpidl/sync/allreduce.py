"""Synchronous data-parallel SGD: gradients are summed over all ranks by an all-reduce in every step (MPI-SGD)."""

from __future__ import annotations

import numpy as np

from mpidl.collectives import all_reduce
from mpidl.comm.context import Context
from mpidl.comm.transport import host_view
from mpidl.nn import FlatParameters
from mpidl.sync.strategy import StepScalars, Strategy


class AllReduce(Strategy):
    """Sums gradients and scalars in one message. Ranks scale their gradients by the global batch, so the sum is the mean."""

    def __init__(self, parameters: FlatParameters, context: Context, *, algorithm: str = "ring") -> None:
        self.parameters, self.context, self.algorithm = parameters, context, algorithm

    def begin(self) -> None:
        """Rank 0's parameters reach every rank."""
        with host_view(self.parameters.values) as values:
            self.context.comm.Bcast(values, root=0)

    def ready(self, start: int, stop: int) -> None:
        """Nothing leaves before `finish`: one message is the fastest for models of this size."""

    def note(self, scalars: StepScalars) -> None:
        spare = self.parameters.spare
        own = np.array([scalars.loss, scalars.correct, scalars.failed, scalars.stop], spare.dtype)
        spare[:4] = self.parameters.ops.to_device(own)

    def finish(self) -> StepScalars:
        all_reduce(self.parameters.message, comm=self.context.comm, algorithm=self.algorithm)
        return StepScalars(*(float(value) for value in self.parameters.ops.to_host(self.parameters.spare[:4])))
