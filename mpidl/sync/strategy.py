"""What the trainer asks of a strategy for combining the work of all ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from mpidl.backend import Array
from mpidl.collectives import Group, all_reduce
from mpidl.comm.context import Context
from mpidl.errors import ConfigError
from mpidl.nn import FlatParameters
from mpidl.nn.parameters import FlatPart
from mpidl.optim import Optimizer, RunState
from mpidl.options import Section

Apply = Callable[[], None]


@dataclass(frozen=True)
class RunInfo:
    """What a strategy may know of a run besides the parameters.

    Attributes:
        ranks: Of the job; 0: not known yet.
        epoch_steps: Steps of an epoch.
        micro_batches: Of a step, over all ranks.
        seed: Of the run.
        precision: Of activations and matrix products.
        optimizer: Its name, for messages.
        per_tensor: Whether the optimizer looks at whole tensors.
        sparse_updates: Whether the optimizer leaves elements without a gradient alone.
        checkpoint_steps: Steps between checkpoints within epochs; 0: there are none.
        collective_reads: Whether all ranks read their data together.
        needs_collective: Whether a pass of the model waits for the other ranks (batch norm).
        host_memory: Whether the parameters lie in host memory.
    """

    ranks: int = 0
    epoch_steps: int = 1
    micro_batches: int = 1
    seed: int = 0
    precision: str = "float32"
    optimizer: str = "sgd"
    per_tensor: bool = False
    sparse_updates: bool = True
    checkpoint_steps: int = 0
    collective_reads: bool = False
    needs_collective: bool = False
    host_memory: bool = True

    @property
    def exact(self) -> bool:
        """Whether these ranks can compute the same bits as one (see mpidl.train.accumulation).

        They are a power of two, and each has whole micro-batches.
        """
        return self.ranks & (self.ranks - 1) == 0 and self.micro_batches % max(self.ranks, 1) == 0


@dataclass
class StepScalars:
    """The scalars of one step: this rank's, or sums over all ranks.

    They travel behind the gradients in the same message. failed: ranks on which something went wrong; stop: ranks that
    were asked to stop by a signal; count: samples that loss and correct are sums over.
    """

    loss: float = 0.0
    correct: float = 0.0
    failed: float = 0.0
    stop: float = 0.0
    count: float = 0.0

    def write(self, spare: Array, parameters: FlatParameters) -> None:
        """Into the spare elements behind the gradients."""
        own = np.array(astuple(self), spare.dtype)
        spare[: own.size] = parameters.ops.to_device(own)

    @classmethod
    def read(cls, spare: Array, parameters: FlatParameters) -> StepScalars:
        """From the spare elements."""
        return cls(*(float(value) for value in parameters.ops.to_host(spare[:5])))

    def add(self, other: StepScalars) -> None:
        """Add all fields, in place."""
        for name in ("loss", "correct", "failed", "stop", "count"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Strategy(ABC):
    """One way of combining the work of all ranks over the flat buffers.

    overlaps: whether gradients leave during backward. averages_locally: gradients are divided by this rank's samples, not by those
    of the global batch. independent: every rank goes its own pace. accumulates: takes the gradients of each micro-batch,
    instead of their sum on this rank. fatal_errors: an error on one rank cannot be agreed on in order, and ends the job at
    once. part: the parameters that this rank's optimizer changes, and the gradients it takes. sent: bytes that this rank has
    put on the wire. replicas_differ: whether the replicas of the ranks may differ now.
    """

    class Options(Section, frozen=True):
        """A strategy without options."""

    overlaps = False
    averages_locally = False
    independent = False
    reduces_micro_batches = False
    fatal_errors = False
    replicas_differ = False

    def __init__(self, parameters: FlatParameters) -> None:
        self.parameters = parameters
        self.shard: FlatParameters | FlatPart = parameters
        self.optimizer: Optimizer | None = None  # set by whoever makes both
        self.sent = 0

    @classmethod
    def create(
        cls, options: Any, parameters: FlatParameters, context: Context, run: RunInfo
    ) -> Strategy:
        """The strategy with `options`. Collective."""
        raise NotImplementedError

    @classmethod
    def check(cls, options: Any, run: RunInfo) -> None:
        """Refuse what cannot work together.

        Called when the configuration is read, and again when ranks and model are known.

        Raises:
            ConfigError: This strategy cannot work in such a run.
        """
        if run.needs_collective and run.ranks > 1 and not cls.runs_in_lockstep(options):
            raise ConfigError(
                "the model has batch norm over all ranks, which must then take each pass together; "
                "with this strategy they do not",
                where="sync.strategy",
                remedy="set synchronized = false in the model, or use allreduce, zero (stage 1 or "
                "2), local_sgd or gossip",
            )

    @classmethod
    def runs_in_lockstep(cls, options: Any) -> bool:
        """Whether all ranks do equally many passes, one by one."""
        return True

    @classmethod
    def training_ranks(cls, options: Any, ranks: int) -> int:
        """How many of `ranks` train: the first ones."""
        return ranks

    @abstractmethod
    def start(self) -> None:
        """Make all replicas equal before the first step. Collective."""

    def on_gradients_ready(self, start: int, stop: int) -> None:
        """During backward: the gradients [start, stop) are final and may leave."""

    def gradient_range(self, start: int, stop: int) -> list[Array]:
        """Where the gradients [start, stop) lie, once backward has written them and before `ready`."""
        return [self.parameters.gradients[start:stop]]

    def note(self, scalars: StepScalars) -> None:
        """Put this rank's scalars behind its gradients."""
        scalars.write(self.parameters.spare, self.parameters)

    @abstractmethod
    def step(self, own: StepScalars, apply: Apply) -> StepScalars:
        """After backward: exchange, and have the optimizer take its step by calling `apply`, in the strategy's order.

        own: this rank's scalars; where it failed there are no gradients, but the strategy goes through the same exchanges.
        Returns the sums over all ranks; or this rank's own, with failed and stop 0, in a step in which the ranks do not meet.
        """

    def synchronize(self) -> StepScalars:
        """A point of consistency, before evaluation and checkpoints: afterwards all ranks hold the same parameters.

        Returns what has failed or asked to stop since the ranks last met, summed over them. Collective.
        """
        return StepScalars()

    def average_optimizers(self, group: Group) -> None:
        """Where every rank has a whole optimizer of its own: their states become their mean. Collective."""
        for name, array in (self.optimizer.state if self.optimizer else {}).items():
            all_reduce(array, comm=group, op="mean", name=name)

    # --- checkpoints: a buffer of the part's length here, of the whole model's in the file ---
    def gather_full(self, array: Array) -> Array:
        """A buffer of the optimizer over the whole model. Collective."""
        return array

    def load_shard(self, whole: Any, array: Array) -> None:
        """Fill this rank's part of a buffer from one over the whole model (on the host)."""
        array[...] = self.parameters.ops.to_device(whole)

    def state(self) -> RunState:
        """What a resumed run needs besides parameters and optimizer buffers of the whole model, to go on bit for bit.

        Asked before `synchronize`, which may change it: where replicas differ each rank's own parameters are in it.
        """
        state = RunState()
        if self.optimizer is not None:
            state.set_numbers(own=True, updates=self.optimizer.count)
        return state

    def load_state(self, state: RunState) -> None:
        """Go on from what `state` returned, after `begin`. Takes out of it what it uses; what is missing starts anew."""
        if self.optimizer is not None:
            self.optimizer.count = int(state.take_number("updates", self.optimizer.count))

    def initialize(self, seed: int) -> None:
        """Fill the parameters; the same whatever the number of ranks."""
        self.parameters.initialize(seed)

    def values(self) -> Array:
        """The parameters of the whole model. Collective."""
        return self.parameters.values

    def load_values(self, whole: Array) -> None:
        """Set the parameters from those of the whole model, on every rank."""
        self.parameters.values[...] = whole

    def report(self) -> dict[str, Any]:
        """Figures about the run so far for people and for comparison: bytes, staleness, memory. Collective."""
        return {"sent_bytes": self.report_sent()}

    def report_sent(self) -> int:
        """Bytes that this rank has put on the wire."""
        return self.sent
