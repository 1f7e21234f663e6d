"""Base class of the operation families."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike


def accumulator(dtype: DTypeLike) -> np.dtype[Any]:
    """The dtype in which numbers of `dtype` are summed, and in which their statistics are kept."""
    given = np.dtype(dtype)
    return np.dtype(np.float32) if given.itemsize == 2 else given


class Launcher(ABC):
    """Runs kernels of the table by name on arrays of one backend.

    Attributes:
        xp: numpy or cupy.
        half_types: 16-bit dtypes that activations and copies of the weights may have.
        largest_head: Elements of an attention head, at most; 0: any number.
    """

    xp: Any
    half_types: tuple[np.dtype[Any], ...] = ()
    largest_head = 0

    @abstractmethod
    def launch(self, name: str, *args: Any) -> None:
        """Run a kernel.

        Args:
            name: A key of `mpidl.backend.table.KERNELS`.
            args: Its arguments, in the order of the table.

        Raises:
            BackendError: An argument does not fit the table.
        """
