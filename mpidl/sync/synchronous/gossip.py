"""Gossip: after each step a rank averages its parameters with a few others, never with all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.comm.context import Context
from mpidl.comm.transport import host_view
from mpidl.nn import FlatParameters
from mpidl.optim import RunState
from mpidl.options import Section
from mpidl.sync.strategy import RunInfo, StepScalars
from mpidl.sync.synchronous.averaging import ParameterAveraging
from mpidl.sync.synchronous.strategy import Update
from mpidl.sync.topology import GraphOptions

TAG = 1  # of messages
MEET = 16  # steps between checks of whether a rank has failed


class Gossip(ParameterAveraging):
    """Decentralized SGD along the edges of a graph (D-PSGD: Lian et al., 2017).

    Push-sum sends along directed edges, and corrects for ranks that got more than they gave (SGP:
    Assran et al., 2019).

    Attributes:
        graph: Who exchanges with whom, in which step.
        exchanges: Done so far; they choose the edges of the graph.
        weight: The push-sum weight of this rank.
    """

    class Options(GraphOptions, frozen=True):
        """Options of gossip.

        Attributes:
            graph: Who exchanges with whom (see docs/strategies.md).
            edges: Pairs of ranks, of a "custom" graph.
            period: Steps between exchanges.
            push_sum: Send along directed edges, corrected by push-sum weights (SGP).
        """

        push_sum: bool = False

    options: Options

    @classmethod
    def check(cls, options: Any, run: RunInfo) -> None:
        """Also refuse graphs that leave ranks alone."""
        super().check(options, run)
        options.check_ranks(run.ranks)

    def __init__(
        self,
        parameters: FlatParameters,
        context: Context,
        options: Section | None = None,
        run: RunInfo | None = None,
    ) -> None:
        super().__init__(parameters, context, options, run)
        directed = self.options.push_sum
        self.graph = self.options.build(context.size, self.run.seed, directed=directed)
        self.count = 0
        self.exchanges = 0
        self.weight = 1.0
        self._inbox = np.empty((0, 0), parameters.dtype)

    def step(self, scalars: StepScalars, update: Update) -> StepScalars:
        self.count += 1
        if not scalars.failed:
            update()
        self.diverge()
        if self.count % self.options.period == 0:
            self._mix()
        return self.meet(scalars) if self.count % MEET == 0 else self.remember(scalars)

    def _mix(self) -> None:
        """Send the weighted parameters to this step's receivers, and add what comes in."""
        mixing = self.graph.mixing(self.group.rank, self.exchanges)
        values = self.parameters.values
        self.exchanges += 1
        if not mixing.sends and not mixing.receives:
            return
        if len(self._inbox) < len(mixing.receives):
            self._inbox = np.empty((len(mixing.receives), values.size + 1), values.dtype)
        with self.group.during("gossip", values, "mean", "parameters"), host_view(values) as host:
            self._exchange(host, mixing.sends, mixing.receives, mixing.own)
        self.sent += len(mixing.sends) * (values.nbytes + values.itemsize)

    def _exchange(
        self,
        host: NDArray[Any],
        sends: Sequence[tuple[int, float]],
        receives: Sequence[int],
        own: float,
    ) -> None:
        """Messages are (x * weight / sum of weights, weight).

        x are the parameters times this rank's push-sum weight.
        """
        comm, boxes = self.group.comm, self._inbox
        requests = [
            comm.Irecv(boxes[index], source=source, tag=TAG)
            for index, source in enumerate(receives)
        ]
        outgoing = []  # MPI reads the messages until the requests are complete
        for dest, weight in sends:
            message = np.empty(host.size + 1, host.dtype)
            np.multiply(host, host.dtype.type(weight * self.weight), out=message[:-1])
            message[-1] = weight * self.weight
            outgoing.append(message)
            requests.append(comm.Isend(message, dest=dest, tag=TAG))
        for request in requests:
            request.Wait()
        host *= host.dtype.type(own * self.weight)
        total = own * self.weight
        for box in boxes[: len(receives)]:
            host += box[:-1]
            total += float(box[-1])
        host *= host.dtype.type(1 / total)
        self.weight = total if self.options.push_sum else 1.0

    def combine(self) -> None:
        """The mean, weighted where push-sum has made ranks unequal."""
        self.average(self.weight if self.options.push_sum else None)
        self.weight = 1.0

    # --- checkpoints ---
    def state(self) -> RunState:
        """Also steps, exchanges (which choose the edges), and this rank's push-sum weight."""
        state = super().state()
        state.set_numbers(count=self.count, exchanges=self.exchanges)
        if self.replicas_differ:
            state.own["weight"] = np.array([self.weight])
        return state

    def load_state(self, state: RunState) -> None:
        super().load_state(state)
        self.count = int(state.take_number("count", self.count))
        self.exchanges = int(state.take_number("exchanges", self.exchanges))
        self.weight = state.take_number("weight", 1.0)

    def report(self) -> dict[str, Any]:
        return super().report() | {
            "exchanges": self.exchanges,
            "spectral_gap": self.graph.spectral_gap(),
        }
