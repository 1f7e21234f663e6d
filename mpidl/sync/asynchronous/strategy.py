"""The contract of strategies whose ranks take steps without waiting for each other."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

from mpidl.comm.context import Context
from mpidl.errors import ConfigError
from mpidl.nn import FlatParameters
from mpidl.options import Section
from mpidl.sync.strategy import RunInfo, StepScalars, Strategy

Update = Callable[[float], None]


class AsynchronousStrategy(Strategy):
    """An epoch is a budget of steps of single ranks; whoever is free takes the next one.

    So a slow rank takes fewer steps. An error on one rank ends the job: the others do not wait for
    this one. Every rank, also one that does not train, calls in each epoch:

        strategy.begin_epoch(budget)
        strategy.serve()
        while (number := strategy.next_step()) is not None:
            ...  # forward and backward
            strategy.apply_gradients(lr, optimizer.step)
        strategy.end_epoch()

    Attributes:
        workers: Ranks that train: the first ones.
        staleness: How many updates of others came between a step's reading the parameters and its
            own update, counted.
    """

    averages_locally = True
    host_only: ClassVar[bool] = True  # works on parameters in host memory only

    def __init__(
        self,
        parameters: FlatParameters,
        context: Context,
        options: Section | None = None,
        run: RunInfo | None = None,
    ) -> None:
        super().__init__(parameters, context, options, run)
        self.workers = self.training_ranks(self.options, context.size)
        self.staleness: Counter[int] = Counter()

    @classmethod
    def check(cls, options: Any, run: RunInfo) -> None:
        """Also refuse what needs ranks that meet in each step."""
        super().check(options, run)
        if run.precision == "float16":
            raise ConfigError(
                "float16 needs ranks that agree on a loss scale; with an asynchronous strategy "
                "they do not meet in a step",
                where="train.precision",
                remedy='set train.precision = "bfloat16"',
            )
        if run.checkpoint_steps:
            raise ConfigError(
                "checkpoint.every_steps needs ranks in step; with an asynchronous strategy they "
                "meet at the end of each epoch only",
                where="checkpoint.every_steps",
                remedy="set checkpoint.every_steps = 0",
            )
        if run.collective_reads:
            raise ConfigError(
                "asynchronous strategies let ranks read when they need data, but the driver "
                "mpio-collective reads together",
                where="data.driver",
                remedy='set data.driver = "auto"',
            )
        if cls.host_only and not run.host_memory:
            raise ConfigError(
                f"{cls.__name__} shares host memory among ranks, but the backend computes on GPUs",
                where="sync.strategy",
                remedy='set backend.name = "numpy", or a strategy that sends messages: '
                "parameter_server, gossip",
            )

    @classmethod
    def runs_in_lockstep(cls, options: Any) -> bool:
        """Never."""
        return False

    def start(self) -> None:
        super().start()
        self.load_values(self.parameters.values)

    # --- an epoch ---
    @abstractmethod
    def begin_epoch(self, budget: int) -> None:
        """Begin an epoch of `budget` steps of single ranks. Collective."""

    def serve(self) -> None:
        """On ranks that do not train: work for the others until the epoch is over."""

    @abstractmethod
    def next_step(self) -> int | None:
        """Take the next step, and fetch the parameters for it.

        Returns:
            Its number in the epoch; None where the budget is used up, and on ranks that do not
            train.
        """

    @abstractmethod
    def apply_gradients(self, lr: float, update: Update) -> None:
        """After backward: use this rank's gradients.

        Args:
            lr: The learning rate of a synchronous run.
            update: Takes the step of this rank's optimizer at the rate it is given, if this rank
                has an optimizer.
        """

    def end_epoch(self) -> None:
        """This rank takes no more steps, be the budget used up or not."""

    # --- figures ---
    def meet(self, scalars: StepScalars) -> StepScalars:
        """Sums over all ranks. Collective."""
        total = StepScalars()
        for other in self.context.allgather_object(scalars, StepScalars):
            total.add(other)
        return total

    def report(self) -> dict[str, Any]:
        own = dict(self.staleness), self.sent
        everyone = self.context.allgather_object(own, tuple[dict[int, int], int])
        total: Counter[int] = Counter()
        for counted, _ in everyone:
            total.update(counted)
        return {
            "sent_bytes": max(sent for _, sent in everyone),
            "staleness": dict(sorted(total.items())),
            "applied": total.total(),
        }


def mean_and_largest(report: dict[str, Any]) -> tuple[float, int] | None:
    """Of the staleness in a strategy's report; None where there is none."""
    counted = {int(late): times for late, times in report.get("staleness", {}).items()}
    total = sum(counted.values())
    if not total:
        return None
    return sum(late * times for late, times in counted.items()) / total, max(counted)
