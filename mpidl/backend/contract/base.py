"""What all families stand on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

Array = Any  # numpy.ndarray or cupy.ndarray


def accumulator(dtype: DTypeLike) -> np.dtype[Any]:
    """The dtype in which numbers of `dtype` are added up, and in which statistics of them are kept."""
    given = np.dtype(dtype)
    return np.dtype(np.float32) if given.itemsize == 2 else given


class Launcher(ABC):
    """Runs kernels of the table by name on arrays of one backend.

    xp: numpy or cupy. half_types: 16-bit dtypes that activations and copies of the weights may have. largest_head: elements of
    an attention head, at most; 0: any number.
    """

    xp: Any
    half_types: tuple[np.dtype[Any], ...] = ()
    largest_head = 0

    def column_sums(self, x: Array, out: Array) -> None:
        """Out (cols) = sum of x (rows, cols) over its rows."""
        raise NotImplementedError

    def bias_act(self, y: Array, bias: Array, *, relu: bool) -> None:
        """Y (rows, cols) = act(y + bias (cols)), in place."""
        raise NotImplementedError

    @abstractmethod
    def launch(self, name: str, *args: Any) -> None:
        """Run kernel `name` of `mpidl.backend.table`; the dtype is that of its first floating array."""

    @abstractmethod
    def matmul(self, a: Array, b: Array, out: Array, *, accumulate: bool = False) -> None:
        """Out (m, n) = a (m, k) @ b (k, n), or out += ...; all may be views with any strides."""


Kernels = dict[str, Callable[..., None]]
