"""The contract of strategies in which all ranks take each step together."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from mpidl.sync.strategy import StepScalars, Strategy

Update = Callable[[], None]


class SynchronousStrategy(Strategy):
    """Every rank calls `step` equally often, whether or not the ranks meet in each step.

    An error on one rank does not end its step: it goes through the exchanges that the others wait
    in, with `failed` among its scalars, and the ranks raise together where they meet.

    Attributes:
        replicas_differ: Whether the replicas may differ now. `synchronize` then changes them, and
            `load_state` restores them.
    """

    replicas_differ: bool = False

    @classmethod
    def runs_in_lockstep(cls, options: Any) -> bool:
        """Whether all ranks run the same number of passes, one by one."""
        return True

    @abstractmethod
    def step(self, scalars: StepScalars, update: Update) -> StepScalars:
        """After backward: exchange and update, in the strategy's order. Collective.

        Args:
            scalars: Of this rank, over all its micro-batches. Where it has failed there are no
                gradients, but the strategy goes through the same exchanges.
            update: Takes the step of this rank's optimizer; called at most once.

        Returns:
            Sums over all ranks; in a step in which the ranks do not meet this rank's own, with
            `failed` and `stop` 0.
        """
