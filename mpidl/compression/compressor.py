"""What a compressor is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from mpidl.collectives import Group
from mpidl.optim import RunState
from mpidl.options import Section

# the tensors in a bucket: (start, stop, shape), elements counted from the beginning of the bucket
Layout = Sequence[tuple[int, int, tuple[int, ...]]]


class Compressor(ABC):
    """Approximate sum all-reduce of a float32 bucket.

    Args:
        options: Of the class `Options`; None: the defaults.
        seed: Of stochastic rounding and random factors.

    Attributes:
        on_device: Takes a bucket in GPU memory as it is, else a copy on the host.
        sent: Bytes that this rank has put on the wire.
    """

    class Options(Section, frozen=True):
        """Options of every compressor.

        Attributes:
            error_feedback: Add what compression leaves out of a step to the next one.
        """

        error_feedback: bool = True

    on_device = True

    def __init__(self, options: Any = None, *, seed: int = 0) -> None:
        self.options = options or self.Options()
        self.seed = seed
        self.sent = 0

    @abstractmethod
    def reduce(self, values: NDArray[Any], group: Group, key: str, layout: Layout = ()) -> None:
        """Replace a bucket by its approximate sum over the ranks. Collective.

        Args:
            values: (n,) float32, on the host or a GPU; afterwards the same bits on all ranks.
            group: The ranks.
            key: Names the bucket from step to step.
            layout: Its tensors, for compressors that use their shapes.
        """

    def state(self) -> RunState:
        """What later sums depend on besides their values, copied to the host.

        Returns:
            Residuals by bucket, factors, counters. Arrays of a bucket are named "kind:bucket".
        """
        return RunState()

    def load_state(self, state: RunState) -> None:
        """Go on from what `state` returned; takes out of it what is used."""
