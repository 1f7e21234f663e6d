"""Gradients as 16-bit floats: half the bytes; sums in float32, rounded once (see mpidl.collectives)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.collectives import Group, all_reduce
from mpidl.collectives.combine import BFLOAT16, FLOAT16
from mpidl.compression.compressor import Layout, Plain


class Half16(Plain):
    """IEEE binary16: 11 bits of precision, up to 65504. A sum beyond that raises CollectiveError on every rank."""

    dtype: np.dtype[Any] = FLOAT16

    def __init__(self, seed: int = 0) -> None:
        super().__init__()

    def reduce(self, values: NDArray[Any], group: Group, key: str, layout: Layout = ()) -> None:
        """Round, all-reduce, widen."""
        with np.errstate(over="ignore"):
            self._wire = values.astype(self.dtype)
        given = self._wire.copy()
        self.poisoned = not np.isfinite(values).all()
        all_reduce(self._wire, comm=group, name=key)
        self.sent += 2 * (group.size - 1) * self._wire.nbytes // group.size
        values[...] = self._wire
        self._wire = given

    def take_own(self, values: NDArray[Any]) -> None:
        """The values rounded."""
        values -= self._wire.astype(np.float32)


class BrainHalf(Half16):
    """bfloat16: 8 bits of precision, the range of float32."""

    dtype = BFLOAT16
