"""What the training engine asks of every strategy for combining the work of all ranks.

There are two contracts over this base: `SynchronousStrategy`, whose ranks take each step together
(mpidl.sync.synchronous), and `AsynchronousStrategy`, whose ranks do not wait for each other
(mpidl.sync.asynchronous).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mpidl.backend import Array
from mpidl.collectives import Group, all_reduce, broadcast
from mpidl.collectives.schedule import all_reduce_bytes
from mpidl.comm.context import Context
from mpidl.errors import ConfigError
from mpidl.nn import FlatParameters, ParameterShard
from mpidl.optim import Optimizer, RunState
from mpidl.options import Section


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

    Attributes:
        loss: Sum of the losses of samples.
        correct: Samples that were classified correctly.
        failed: Ranks on which something went wrong.
        stop: Ranks that were asked to stop by a signal.
        count: Samples that `loss` and `correct` are sums over.
    """

    loss: float = 0.0
    correct: float = 0.0
    failed: float = 0.0
    stop: float = 0.0
    count: float = 0.0

    def row(self, dtype: DTypeLike) -> NDArray[Any]:
        """The fields in their order; `dataclasses.astuple` copies deeply and takes 5 us more."""
        return np.array(list(vars(self).values()), dtype)

    def write(self, parameters: FlatParameters) -> None:
        """Into the spare elements behind the gradients, to travel in the same message."""
        own = self.row(parameters.spare.dtype)
        parameters.spare[: own.size] = parameters.ops.to_device(own)

    @classmethod
    def read(cls, parameters: FlatParameters) -> Self:
        """From the spare elements behind the gradients."""
        return cls(*parameters.ops.to_host(parameters.spare[: len(fields(cls))]).tolist())

    def add(self, other: StepScalars) -> None:
        """Add all fields, in place."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    @classmethod
    def tree_sum(cls, leaves: Sequence[StepScalars], dtype: DTypeLike = np.float32) -> StepScalars:
        """Sum the scalars of micro-batches in the order and precision of their gradients.

        So the sums over all ranks do not depend on the number of ranks either (see
        mpidl.train.accumulation).

        Args:
            leaves: Of each micro-batch of this rank.
            dtype: Of the gradients.
        """
        if len(leaves) == 1:
            return leaves[0]
        rows = [leaf.row(dtype) for leaf in leaves]
        while len(rows) > 1:
            pairs = [a + b for a, b in zip(rows[::2], rows[1::2], strict=False)]
            rows = pairs + rows[2 * len(pairs) :]
        return cls(*rows[0].tolist())


class Strategy(ABC):
    """One way of combining the work of all ranks over the flat buffers.

    Args:
        parameters: Of the model. A strategy that partitions or shares them lets them use another
            storage.
        context: The ranks.
        options: Of the class `Options`; None: the defaults.
        run: What is known of the run; None: only ranks and backend.

    Raises:
        ConfigError: See `check`.

    Attributes:
        group: All ranks.
        shard: The parameters that this rank's optimizer changes, and the gradients it takes.
        optimizer: Of this rank, on the shard. Set by whoever makes both: an optimizer can be made
            only when the strategy has said what its shard is.
        sent: Bytes that this rank has put on the wire.
    """

    class Options(Section, frozen=True):
        """A strategy without options."""

    # Gradients are divided by the samples of this rank instead of those of the global batch:
    # replicas or updates are averaged, not gradients summed
    averages_locally: ClassVar[bool] = False
    # Takes the gradients of each micro-batch, since there is no memory for their sum on one rank
    reduces_micro_batches: ClassVar[bool] = False
    # Gradients leave during backward; so the passes cannot be one graph of the device
    overlaps: bool = False

    def __init__(
        self,
        parameters: FlatParameters,
        context: Context,
        options: Section | None = None,
        run: RunInfo | None = None,
    ) -> None:
        self.parameters = parameters
        self.context = context
        self.options = options or self.Options()
        on_host = parameters.ops.name == "numpy"
        self.run = run or RunInfo(ranks=context.size, host_memory=on_host)
        self.check(self.options, self.run)
        self.group = Group(context.comm, name=type(self).__name__)
        self.shard: FlatParameters | ParameterShard = parameters
        self.optimizer: Optimizer | None = None
        self.sent = 0

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
    @abstractmethod
    def runs_in_lockstep(cls, options: Any) -> bool:
        """Whether all ranks run the same number of passes, one by one."""

    @classmethod
    def training_ranks(cls, options: Any, ranks: int) -> int:
        """How many of `ranks` train: the first ones."""
        return ranks

    def count_all_reduce(self, array: Array, group: Group) -> None:
        """Add to `sent` what a rank sends of an all-reduced array."""
        self.sent += all_reduce_bytes(array.nbytes, group.size)

    def start(self) -> None:
        """Before the first step: rank 0's parameters reach every rank. Collective."""
        broadcast(self.parameters.values, comm=self.group, name="parameters")

    def on_gradients_ready(self, start: int, stop: int) -> None:
        """During backward: the gradients [start, stop) are final and may leave."""

    def synchronize(self) -> StepScalars:
        """A point of consistency, before evaluation and checkpoints. Collective.

        Afterwards all ranks hold the same parameters.

        Returns:
            What has failed or asked to stop since the ranks last met, summed over them.
        """
        return StepScalars()

    def average_optimizers(self) -> None:
        """Replace the states of whole optimizers, one on each rank, by their mean. Collective."""
        for name, array in (self.optimizer.state if self.optimizer else {}).items():
            all_reduce(array, comm=self.group, op="mean", name=name)

    # --- checkpoints: a buffer of the shard's length here, of the whole model's in the file ---
    def gather_full(self, array: Array) -> Array:
        """A buffer of the optimizer over the whole model. Collective.

        Args:
            array: (shard length,).

        Returns:
            (parameters length,), on every rank.
        """
        return array

    def load_shard(self, whole: Any, array: Array) -> None:
        """Fill this rank's part of a buffer from one over the whole model.

        Args:
            whole: (parameters length,), on the host.
            array: (shard length,).
        """
        array[...] = self.parameters.ops.to_device(whole)

    def state(self) -> RunState:
        """What a resumed run needs besides the parameters and optimizer buffers of the whole model.

        Asked for before `synchronize`, which may change it: where replicas differ each rank's own
        parameters are in it.
        """
        state = RunState()
        if self.optimizer is not None:
            state.set_numbers(own=True, updates=self.optimizer.count)
        return state

    def load_state(self, state: RunState) -> None:
        """Resume from what `state` returned, after `start`.

        Args:
            state: What is used is taken out of it; what is missing starts anew.
        """
        if self.optimizer is not None:
            self.optimizer.count = int(state.take_number("updates", self.optimizer.count))

    def initialize(self, seed: int) -> None:
        """Fill the parameters; the same whatever the number of ranks."""
        self.parameters.initialize(seed)

    def values(self) -> Array:
        """The parameters of the whole model, (parameters length,). Collective."""
        return self.parameters.values

    def load_values(self, whole: Array) -> None:
        """Set the parameters from those of the whole model, on every rank. Collective."""
        self.parameters.values[...] = whole

    def report(self) -> dict[str, Any]:
        """Figures of the run so far for people and comparisons. Collective.

        Returns:
            Bytes sent, staleness, memory.
        """
        return {"sent_bytes": self.report_sent()}

    def report_sent(self) -> int:
        """Bytes that this rank has put on the wire."""
        return self.sent
