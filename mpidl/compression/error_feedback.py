"""Error feedback: what compression leaves out of a bucket is added to it in the next step.

Without it biased compressors (sign, top-k, PowerSGD) need not converge; with it they do, at nearly
the rate of plain SGD (Seide et al., 2014; Karimireddy et al., 2019).

Each compressor keeps its own `Residuals` instead of a wrapper doing it for all: top-k adds the
residual in the same pass that finds the threshold, and the quantized ones add it part by part while
the part before it travels. A wrapper would read and write the whole bucket once more.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.comm.transport import array_module, is_device
from mpidl.optim import RunState


class Residuals:
    """What a compressor keeps of each bucket from step to step.

    Args:
        kind: Names them in checkpoints, as "kind:bucket".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._arrays: dict[str, NDArray[Any]] = {}

    def of(self, key: str, shape: tuple[int, ...], like: NDArray[Any]) -> NDArray[Any]:
        """The array of a bucket, to be changed in place.

        Args:
            key: The bucket.
            shape: As it is used; zeros where nothing of this size was kept.
            like: An array in the memory (host or GPU) where it is to lie.
        """
        held: Any = self._arrays.get(key)
        if held is None or held.size != math.prod(shape):
            held = array_module(like).zeros(shape, np.float32)
        elif is_device(like) and not is_device(held):  # of a checkpoint
            held = array_module(like).asarray(held)
        kept: NDArray[Any] = held.reshape(shape)
        self._arrays[key] = kept
        return kept

    def save(self, state: RunState) -> None:
        """Put copies on the host into `state`, as this rank's own."""
        arrays: dict[str, Any] = self._arrays
        for key, array in arrays.items():
            host = array.get() if is_device(array) else array
            state.own[f"{self.kind}:{key}"] = np.array(host)

    def load(self, state: RunState) -> None:
        """Take out of `state` what `save` has put there, in place of what is kept."""
        self._arrays = take_arrays(state, self.kind)


def take_arrays(state: RunState, kind: str) -> dict[str, NDArray[Any]]:
    """Take the arrays named "kind:bucket" out of `state`; returns them by bucket."""
    start, found = f"{kind}:", {}
    for name in [name for name in state.names() if name.startswith(start)]:
        array = state.take(name)
        assert array is not None
        found[name.removeprefix(start)] = array
    return found


def drop_nonfinite(residual: NDArray[Any]) -> None:
    """Set elements that are not finite to zero: else one infinity would stay for ever."""
    finite = np.isfinite(residual)
    if not finite.all():
        residual[~finite] = 0
