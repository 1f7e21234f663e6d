"""What all families stand on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

Array = Any  # numpy.ndarray or cupy.ndarray


class Launcher(ABC):
    """Runs kernels of the table by name on arrays of one backend. xp: numpy or cupy."""

    xp: Any

    @abstractmethod
    def launch(self, name: str, *args: Any) -> None:
        """Run kernel `name` of `mpidl.backend.table`; the dtype is that of its first floating array."""

    @abstractmethod
    def matmul(self, a: Array, b: Array, out: Array, *, accumulate: bool = False) -> None:
        """Out (m, n) = a (m, k) @ b (k, n), or out += ...; all may be views with any strides."""


Kernels = dict[str, Callable[..., None]]
