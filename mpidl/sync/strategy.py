"""What the trainer asks of a strategy for keeping replicas together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass
class StepScalars:
    """The scalars of one step: this rank's in `note`, the sums over all ranks from `finish`.

    They travel behind the gradients in the same message. failed: ranks on which something went wrong; stop: ranks that
    were asked to stop by a signal.
    """

    loss: float = 0.0
    correct: float = 0.0
    failed: float = 0.0
    stop: float = 0.0


class Strategy(ABC):
    """One way of combining the work of all ranks over the flat buffers.

    overlaps: whether gradients leave during backward.
    """

    overlaps = False

    @abstractmethod
    def begin(self) -> None:
        """Make all replicas equal before the first step."""

    @abstractmethod
    def ready(self, start: int, stop: int) -> None:
        """During backward: the gradients [start, stop) are final and may leave."""

    @abstractmethod
    def note(self, scalars: StepScalars) -> None:
        """Put this rank's scalars behind its gradients."""

    @abstractmethod
    def finish(self) -> StepScalars:
        """After backward: complete the exchange; the gradients are then those of the global batch, and the scalars their
        sums over all ranks. Collective.
        """
