"""Training loops of your own with any strategy, by names of PaddlePaddle Fleet and Horovod.

    from mpidl import fleet

    fleet.init("local_sgd", steps=8)
    optimizer = fleet.distributed_optimizer(Adam(model.parameters, model.ops), model)
    for x, y in batches:
        outputs, backward = model.forward(x, train=True)
        result = loss(outputs, y, optimizer.loss_divisor(len(x)))
        backward(result.gradient, optimizer.on_gradients_ready)
        optimizer.step(0.01, loss=result.total, count=len(x))
    optimizer.synchronize()

`docs/fleet.md` says more. One strategy a process; every rank calls the same functions in the same
order. Where the loop need not be yours, `mpidl.train.engine.TrainingStep` takes whole steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mpidl.backend import Array
from mpidl.comm import context as ranks
from mpidl.config import SyncConfig
from mpidl.errors import ConfigError
from mpidl.nn import Model
from mpidl.optim import Optimizer
from mpidl.options import Place
from mpidl.sync import STRATEGIES, AsynchronousStrategy, RunInfo, StepScalars
from mpidl.train.build import build_strategy
from mpidl.train.engine import OptimizerStep
from mpidl.train.shared_state import SharedState

# the only state of the process: what later optimizers are made with
_settings: SyncConfig | None = None


@dataclass
class DistributedStrategy:
    """What Fleet calls its strategy object.

    Attributes:
        name: Of a strategy.
        options: Its options, as in the section [sync] of a configuration.
    """

    name: str = "allreduce"
    options: dict[str, Any] | None = None

    def settings(self) -> SyncConfig:
        """The section [sync].

        Raises:
            ConfigError: There is no such strategy or option, or a value is impossible.
        """
        tree = {"strategy": self.name, **(self.options or {})}
        remedy = "check the options (docs/strategies.md)"
        return SyncConfig.read(tree, Place(("sync",), lambda name: "fleet.init", remedy=remedy))


def init(strategy: str | DistributedStrategy = "allreduce", /, **options: Any) -> None:
    """Start MPI and choose the strategy of optimizers that are made from now on. Collective.

    Args:
        strategy: Its name, or an object with name and options.
        options: Of the strategy, as in the section [sync] of a configuration.

    Raises:
        ConfigError: There is no such strategy or option; on all ranks.
    """
    global _settings
    context = ranks.init()
    if not isinstance(strategy, DistributedStrategy):
        strategy = DistributedStrategy(strategy, options)
    with context.fail_together("fleet.init"):
        _settings = strategy.settings()


def _chosen() -> SyncConfig:
    if _settings is None:
        raise ConfigError(
            "no strategy has been chosen",
            where="mpidl.fleet",
            remedy="call fleet.init with one of " + ", ".join(STRATEGIES),
        )
    return _settings


def worker_index() -> int:
    """This rank's number among those that train."""
    return ranks.init().rank


def worker_num() -> int:
    """Number of ranks that train."""
    sync = _chosen()
    count: int = sync.chosen.training_ranks(sync.options, ranks.init().size)
    return count


def is_worker() -> bool:
    """Whether this rank trains."""
    return ranks.init().rank < worker_num()


def is_server() -> bool:
    """Whether this rank only holds parameters."""
    return not is_worker()


def is_first_worker() -> bool:
    """Whether this is rank 0."""
    return ranks.init().is_root


class DistributedOptimizer:
    """An optimizer whose steps the ranks take as their strategy says; Horovod's name for it.

    Args:
        optimizer: Bound anew to the shard of the parameters that the strategy leaves to this rank.
        model: Rank 0's parameters reach all ranks.
        epoch_steps: Steps of an epoch, for strategies that count epochs.
        micro_batches: Backward passes before each `step`, over all ranks.
        seed: Of random choices of the strategy and of random layers.

    Raises:
        ConfigError: There is no strategy, or it cannot work with this model, optimizer or number
            of ranks; on all ranks.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: Model,
        *,
        epoch_steps: int = 1,
        micro_batches: int = 1,
        seed: int = 0,
    ) -> None:
        settings = _chosen()
        self.context = ranks.init()
        run = RunInfo(
            ranks=self.context.size,
            epoch_steps=epoch_steps,
            micro_batches=micro_batches,
            seed=seed,
            optimizer=type(optimizer).__name__,
            per_tensor=optimizer.per_tensor,
            sparse_updates=optimizer.is_sparse(optimizer.options),
            needs_collective=model.needs_collective,
            host_memory=model.ops.name == "numpy",
        )
        with self.context.fail_together("setting up the strategy"):
            settings.chosen.check(settings.options, run)
        self.model = model
        self.optimizer = optimizer
        values = model.parameters.values.copy()  # the strategy may move the parameters
        self.strategy = build_strategy(settings, model.parameters, self.context, run)
        if self.strategy.shard is not model.parameters:
            optimizer.bind(self.strategy.shard)
        self._finish = OptimizerStep(self.strategy, optimizer)
        self._shared = SharedState(model, self.context, seed)
        self._begin(0)
        self.strategy.load_values(values)
        self.strategy.start()

    def _begin(self, step: int) -> None:
        """Random layers draw anew in each step."""
        self._step = step
        self._shared.begin(step, 0, 1)

    @property
    def state(self) -> dict[str, Array]:
        """The state of this rank's optimizer."""
        return self.optimizer.state

    def loss_divisor(self, own: int) -> int:
        """What the loss divides its gradient by.

        Args:
            own: Samples of this rank in the step; all ranks have as many.

        Returns:
            The samples of all ranks, or those of this rank, as the strategy combines gradients.
        """
        return own if self.strategy.averages_locally else own * self.context.size

    def on_gradients_ready(self, start: int, stop: int) -> None:
        """For `backward`: gradients [start, stop) are final and may leave."""
        self.strategy.on_gradients_ready(start, stop)

    def step(
        self, lr: float, *, loss: float = 0.0, correct: float = 0.0, count: int = 0
    ) -> StepScalars:
        """Exchange, and update.

        Args:
            lr: Learning rate.
            loss: Sum over this rank's samples.
            correct: Number of correct samples of this rank.
            count: Number of samples of this rank.

        Returns:
            Sums over the ranks, where they meet in this step; else this rank's own.
        """
        sums = self._finish.run(StepScalars(loss, correct, count=count), lr)
        self._begin(self._step + 1)
        return sums

    def iterate_steps(self, steps: int) -> Iterator[int]:
        """Number the steps until the ranks together have done `steps` each. Collective.

        Where ranks train asynchronously a fast one gets more of them; servers serve meanwhile and
        get none.
        """
        if not isinstance(self.strategy, AsynchronousStrategy):
            yield from range(steps)
            return
        self.strategy.begin_epoch(steps * self.strategy.workers)
        self.strategy.serve()
        while (ticket := self.strategy.next_step()) is not None:
            yield ticket
        self.strategy.end_epoch()

    def synchronize(self) -> None:
        """Give all ranks the same parameters: before evaluating or saving. Collective."""
        self._shared.synchronize()
        self.strategy.synchronize()

    def values(self) -> Array:
        """The parameters of the whole model. Collective."""
        return self.strategy.values()

    def report(self) -> dict[str, Any]:
        """Bytes, staleness, memory. Collective."""
        return self.strategy.report()


def distributed_optimizer(optimizer: Optimizer, model: Model) -> DistributedOptimizer:
    """The optimizer with the chosen strategy around it; Fleet's name for it. Collective.

    Args:
        optimizer: See `DistributedOptimizer`.
        model: See `DistributedOptimizer`.
    """
    return DistributedOptimizer(optimizer, model)
