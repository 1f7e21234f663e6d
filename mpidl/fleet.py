"""Training loops of your own with any strategy, by the names that users of PaddlePaddle Fleet and Horovod know (docs/fleet.md).

    from mpidl import fleet

    fleet.init("local_sgd", steps=8)
    model = fleet.distributed_model(model)
    optimizer = fleet.distributed_optimizer(Adam(model.parameters, model.ops))
    for x, y in batches:
        logits, backward = model.forward(x, train=True)
        result = loss(logits, y, optimizer.loss_divisor(len(x)))
        backward(result.gradient, optimizer.on_gradients_ready)
        optimizer.step(0.01, loss=result.total, count=len(x))
    optimizer.synchronize()

One strategy a process; every rank calls the same functions in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mpidl.backend import Array
from mpidl.comm import context as ranks
from mpidl.comm.context import Context
from mpidl.config import SyncConfig
from mpidl.errors import ConfigError
from mpidl.nn import Model
from mpidl.optim import Optimizer
from mpidl.options import Place
from mpidl.sync import (
    STRATEGIES,
    AsynchronousStrategy,
    RunInfo,
    StepScalars,
    Strategy,
    SynchronousStrategy,
)
from mpidl.train.build import build_strategy

_settings: SyncConfig | None = None
_model: Model | None = None


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
        """Checked. Raises ConfigError."""
        tree = {"strategy": self.name, **(self.options or {})}
        remedy = "check the options (docs/strategies.md)"
        return SyncConfig.read(tree, Place(("sync",), lambda name: "fleet.init", remedy=remedy))


def init(strategy: str | DistributedStrategy = "allreduce", /, **options: Any) -> None:
    """Start MPI and choose the strategy; options as in its section of a configuration. Collective."""
    global _settings, _model
    context = ranks.init()
    chosen = (
        strategy
        if isinstance(strategy, DistributedStrategy)
        else DistributedStrategy(strategy, options)
    )
    with context.fail_together("fleet.init"):
        _settings = chosen.settings()
    _model = None


def _known() -> tuple[SyncConfig, Context]:
    if _settings is None:
        raise ConfigError(
            "no strategy has been chosen",
            where="mpidl.fleet",
            remedy="call fleet.init with one of " + ", ".join(STRATEGIES),
        )
    return _settings, ranks.init()


def worker_index() -> int:
    """This rank's number among those that train."""
    return ranks.init().rank


def worker_num() -> int:
    """How many ranks train."""
    sync, context = _known()
    ranks_: int = sync.chosen.training_ranks(sync.options, context.size)
    return ranks_


def is_worker() -> bool:
    """Whether this rank trains."""
    return ranks.init().rank < worker_num()


def is_server() -> bool:
    """Whether this rank only holds parameters."""
    return not is_worker()


def is_first_worker() -> bool:
    """Whether this is rank 0."""
    return ranks.init().is_root


def distributed_model(model: Model) -> Model:
    """The model to train. It stays the same object; `distributed_optimizer` gives all ranks equal parameters."""
    global _model
    _model = model
    return model


def distributed_optimizer(optimizer: Optimizer, model: Model | None = None) -> DistributedOptimizer:
    """The optimizer with the chosen strategy around it. Collective; rank 0's parameters reach all ranks."""
    chosen = model or _model
    if chosen is None:
        raise ConfigError(
            "there is no model", where="mpidl.fleet", remedy="call fleet.distributed_model before"
        )
    return DistributedOptimizer(optimizer, chosen)


class DistributedOptimizer:
    """An optimizer whose steps the ranks take as their strategy says; also by Horovod's name.

    The optimizer may be bound anew, to the part of the parameters that the strategy leaves to this rank.
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
        settings, self.context = _known()
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
        self.model, self.optimizer = model, optimizer
        values = model.parameters.values.copy()
        self.strategy: Strategy = build_strategy(settings, model.parameters, self.context, run)
        if self.strategy.shard is not model.parameters:
            optimizer.bind(self.strategy.shard)
        self.strategy.optimizer = optimizer
        self.strategy.load_values(values)
        self.strategy.start()

    @property
    def state(self) -> dict[str, Array]:
        """The state of this rank's optimizer."""
        return self.optimizer.state

    def loss_divisor(self, own: int) -> int:
        """By how many samples to divide: those of all ranks, or this rank's own, as the strategy wants it."""
        return own if self.strategy.averages_locally else own * self.context.size

    def on_gradients_ready(self, start: int, stop: int) -> None:
        """For `backward`: gradients [start, stop) are final."""
        self.strategy.on_gradients_ready(start, stop)

    def step(
        self, lr: float, *, loss: float = 0.0, correct: float = 0.0, count: int = 0
    ) -> StepScalars:
        """Exchange, and update. Returns sums of loss, correct and count over the ranks, where they meet in this step."""
        if isinstance(self.strategy, AsynchronousStrategy):
            self.strategy.apply_gradients(lr, self.optimizer.step)
            return StepScalars(loss, correct, count=count)
        assert isinstance(self.strategy, SynchronousStrategy)
        own = StepScalars(loss, correct, count=count)
        return self.strategy.step(own, lambda: self.optimizer.step(lr))

    def iterate_steps(self, steps: int) -> Iterator[int]:
        """For strategies whose ranks go their own pace: numbers of steps, until the ranks together have done `steps` each.

        Servers serve meanwhile, and get none. Collective at both ends. Other strategies get `steps` numbers.
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
        """All ranks get the same parameters: before evaluating or saving. Collective."""
        self.strategy.synchronize()

    def values(self) -> Array:
        """The parameters of the whole model. Collective."""
        return self.strategy.values()

    def report(self) -> dict[str, Any]:
        """Bytes, staleness, memory. Collective."""
        return self.strategy.report()
