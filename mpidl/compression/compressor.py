"""What a compressor is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.collectives import Group
from mpidl.comm.transport import array_module, is_device
from mpidl.optim import RunState
from mpidl.options import Section

# the tensors in a bucket: (start, stop, shape), elements counted from the beginning of the bucket
Layout = Sequence[tuple[int, int, tuple[int, ...]]]


class Compressor(ABC):
    """Sums a float32 bucket over the ranks, nearly.

    sent: bytes that this rank has put on the wire so far. on_device: takes a bucket on a GPU as it is.
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
        """Replace `values` (n,) float32 by their sum over the ranks, nearly; the same bits on all of them. Collective.

        key: names the bucket from step to step; layout: its tensors, for compressors that use their shapes.
        """

    def state(self) -> RunState:
        """What later sums depend on besides their values: residuals by bucket, factors, counters; copied to the host."""
        return RunState()

    def load_state(self, state: RunState) -> None:
        """Go on from what `state` returned; takes out of it what it uses."""


def to_host(arrays: Mapping[str, Any], prefix: str) -> dict[str, NDArray[Any]]:
    """Copies of host or device arrays on the host, for `RunState`: under prefix:bucket."""
    return {
        f"{prefix}:{key}": np.array(array.get() if is_device(array) else array)
        for key, array in arrays.items()
    }


def take_all(state: RunState, prefix: str) -> dict[str, NDArray[Any]]:
    """The arrays that `to_host` has put under `prefix`, by bucket; they are removed."""
    start, found = f"{prefix}:", {}
    for name in [name for name in state.names() if name.startswith(start)]:
        array = state.take(name)
        assert array is not None
        found[name.removeprefix(start)] = array
    return found


def fitting(held: Any, shape: tuple[int, ...], like: Any) -> Any:
    """`held` (a residual of an earlier step or a checkpoint) in `shape` and in the memory of `like`; zeros if it is none."""
    if held is None or held.size != math.prod(shape):
        return array_module(like).zeros(shape, np.float32)
    if is_device(like) and not is_device(held):
        held = array_module(like).asarray(held)
    return held.reshape(shape)


class StatelessCompressor(Compressor):
    """One that forgets what it leaves out; `ErrorFeedback` around it does not. poisoned: whether the latest bucket of this rank
    held a value that is not finite.
    """

    poisoned = False

    @abstractmethod
    def take_own(self, values: NDArray[Any]) -> None:
        """Subtract from `values` (n,) what the others got of them in the latest `reduce`."""
