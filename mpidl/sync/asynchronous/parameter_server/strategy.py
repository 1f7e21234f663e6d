"""Parameter servers by messages (Dean et al., 2012; Li et al., 2014)."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpidl.backend import Array
from mpidl.collectives import broadcast
from mpidl.comm.context import Context
from mpidl.errors import ConfigError
from mpidl.nn import FlatParameters
from mpidl.options import NotNegativeNumber, Section
from mpidl.sync.asynchronous.parameter_server.roles import ServerOptions, ServerStrategy
from mpidl.sync.asynchronous.parameter_server.server import Server
from mpidl.sync.asynchronous.parameter_server.worker import Worker
from mpidl.sync.asynchronous.strategy import Update
from mpidl.sync.strategy import RunInfo, StepScalars


class ParameterServer(ServerStrategy):
    """Workers send gradients to servers, which hold the parameters and their optimizer.

    A worker gets the parameters back when the rules of `Clocks` let it go on: with staleness 0 all
    gradients of a round are averaged and used once, else each is used when it comes, at the
    learning rate divided by the number of workers. A gradient that comes late can be corrected for
    how far the parameters have moved meanwhile (DC-ASGD: Zheng et al., 2017).

    Attributes:
        server: This rank's part, if it serves.
        worker: This rank's part, if it trains.
    """

    class Options(ServerOptions, frozen=True):
        """Options of parameter_server.

        Attributes:
            servers: How many ranks only hold parameters: the last ones.
            staleness: Steps that a worker may be ahead of the slowest: 0 synchronous,
                "unbounded" asynchronous.
            delay_compensation: Of gradients that come late (DC-ASGD).
        """

        delay_compensation: NotNegativeNumber = 0.0

    options: Options
    host_only = False

    @classmethod
    def check(cls, options: Any, run: RunInfo) -> None:
        """Also refuse several servers for an optimizer that looks at whole tensors."""
        super().check(options, run)
        if options.servers > 1 and run.per_tensor:
            raise ConfigError(
                f"{run.optimizer} looks at whole tensors, but several servers hold parts of them",
                where="sync.servers",
                remedy='set servers = 1, strategy = "one_sided_server", or another optimizer',
            )

    def __init__(
        self,
        parameters: FlatParameters,
        context: Context,
        options: Section | None = None,
        run: RunInfo | None = None,
    ) -> None:
        super().__init__(parameters, context, options, run)
        shard = parameters.make_shard([self.own])
        self.shard = shard
        self.server: Server | None = None
        self.worker: Worker | None = None
        if self.serves:
            bound, factor = self.options.bound, self.options.delay_compensation
            self.server = Server(shard, self.group, self.workers, bound, factor)
            self.staleness = self.server.staleness
        else:
            self.worker = Worker(parameters, self.group, self.workers, self.ranges)

    def load_values(self, whole: Any) -> None:
        self.parameters.values[...] = whole
        self.shard.values[...] = whole[slice(*self.own)]

    # --- an epoch ---
    def begin_epoch(self, budget: int) -> None:
        if self.server is not None:
            self.server.begin_epoch(budget)
        if self.worker is not None:
            self.worker.begin_epoch()

    def serve(self) -> None:
        if self.server is not None:
            assert self.optimizer is not None, "set before the first epoch"
            self.server.serve(self.optimizer)

    def next_step(self) -> int | None:
        return self.worker.next_step() if self.worker is not None else None

    def apply_gradients(self, lr: float, update: Update) -> None:
        if self.worker is not None:
            self.worker.push(lr)

    def end_epoch(self) -> None:
        if self.worker is not None:
            self.worker.end_epoch()

    # --- consistency ---
    def synchronize(self) -> StepScalars:
        """All ranks get what the servers hold."""
        self.parameters.values[...] = self.gather_full(self.shard.values)
        return StepScalars()

    def gather_full(self, array: Array) -> Array:
        full: Array = self.parameters.ops.xp.zeros(self.parameters.length, self.parameters.dtype)
        full[slice(*self.own)] = array
        for root, (start, stop) in enumerate(self.ranges, self.workers):
            broadcast(full[start:stop], comm=self.group, root=root, name="parameters")
        return full

    def load_shard(self, whole: Any, array: Array) -> None:
        array[...] = self.parameters.ops.to_device(np.ascontiguousarray(whole[slice(*self.own)]))

    # --- figures ---
    def report_sent(self) -> int:
        return (self.server or self.worker).sent  # type: ignore[union-attr]

    def report(self) -> dict[str, Any]:
        applied = sum(self.server.clocks.applied.values()) if self.server is not None else 0
        everyone = self.context.allgather_object(
            (dict(self.staleness), applied, self.report_sent()), tuple[dict[int, int], int, int]
        )
        staleness, applied, _ = everyone[self.workers]  # every server sees the same gradients
        return {
            "sent_bytes": max(sent for _, _, sent in everyone),
            "staleness": dict(sorted(staleness.items())),
            "applied": applied,
        }
