"""The contract of a compute backend: every operation with its shapes, dtypes and layout.

Layout is NHWC for images and (rows, columns) for the rest; arrays are C-contiguous and of one
floating dtype, float32 or float64. On a GPU activations and weight matrices may have 16 bits; then
vectors of parameters, statistics and all gradients of parameters are float32 (`accumulator`).
Operations write into `out` arrays that the caller owns, so that a steady training step allocates
nothing. What NumPy and CuPy spell alike is written once, with `self.xp`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mpidl.backend.array import Array
from mpidl.backend.contract.augment import AugmentOps
from mpidl.backend.contract.compress import CompressOps
from mpidl.backend.contract.conv import ConvOps
from mpidl.backend.contract.int8 import Int8Ops
from mpidl.backend.contract.loss import LossOps
from mpidl.backend.contract.norm import NormOps
from mpidl.backend.contract.optim import OptimOps
from mpidl.backend.contract.sequence import SequenceOps


@dataclass
class Workspace:
    """Arrays that a layer reuses in every step, grown when a larger batch comes.

    Attributes:
        ops: Where the arrays are.
    """

    ops: Ops
    _held: dict[str, Array] = field(default_factory=dict)
    _views: dict[str, tuple[tuple[int, ...], DTypeLike, Array]] = field(default_factory=dict)

    def get(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """An array with arbitrary contents, valid until the next `get` of that name."""
        last = self._views.get(name)
        if last is not None and last[0] == shape and last[1] == dtype:
            return last[2]  # every step but the first and the last of an epoch
        count = math.prod(shape)
        held = self._held.get(name)
        if held is None or held.size < count or held.dtype != np.dtype(dtype):
            self.ops.allocations += 1
            held = self._held[name] = self.ops.xp.empty(count, dtype)
        view = held[:count].reshape(shape)
        self._views[name] = shape, dtype, view
        return view


class Ops(ConvOps, Int8Ops, NormOps, SequenceOps, LossOps, OptimOps, CompressOps, AugmentOps):
    """The operations that layers, losses, optimizers and compressors know.

    Everything else about a device stays behind them. Here stands memory; the operations are in
    `mpidl.backend.contract`, by family.

    Attributes:
        name: "numpy" or "cupy".
        xp: The module numpy or cupy.
        allocations: By workspaces so far: as long as it stays, they stay where they are.
        captures: Whether `capture` makes work cheaper to launch.
    """

    name: str
    xp: Any
    _column_memory: Workspace
    allocations = 0
    captures = False

    def column_space(self, count: int, dtype: Any) -> Array:
        return self._column_memory.get("columns", (count,), dtype)

    def workspace(self) -> Workspace:
        """A new, empty set of reused arrays."""
        return Workspace(self)

    @abstractmethod
    def to_device(self, host: NDArray[Any]) -> Array:
        """A host array as an array of this backend (no copy where that is possible)."""

    def stage(self, host: NDArray[Any], slot: str) -> Array:
        """As `to_device`, for inputs of a step: on a GPU the copy overlaps with earlier work.

        Valid until the second next call with the same slot.
        """
        return self.to_device(host)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Run `work` once, and return what does the same on the same memory again.

        On a GPU that is one graph, launched at once.

        Args:
            work: Launches kernels only, with the same arguments each time, and asks for no result.
        """
        work()
        return work

    @abstractmethod
    def to_host(self, array: Array) -> NDArray[Any]:
        """An array of this backend as a NumPy array (no copy where that is possible)."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until everything asked of the device is done."""

    @abstractmethod
    def describe(self) -> str:
        """One line for people: the device and the kernels in use."""
