"""Where the values and gradients of a model lie: the policy behind the flat buffers.

By default both lie whole in the memory of this rank (`WholeStorage`). Strategies that partition
the model bring a storage of their own (mpidl.sync.synchronous.zero).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from mpidl.backend import Array

if TYPE_CHECKING:
    from mpidl.nn.parameters import Slot


class Storage(ABC):
    """Memory for the values and gradients of a model.

    Attributes:
        values: (n,) of the whole model; (0,) where they do not lie on this rank for good.
        gradients: (n,) or (0,), likewise.
        message: The gradients and the spare elements behind them, contiguous.
        gathers_in_passes: Whether the ranks gather parameters together in the middle of a pass.
            Then all of them run the same number of passes, and an error on one cannot wait for the
            end of the step: the others wait in the pass.
    """

    values: Array
    gradients: Array
    message: Array
    gathers_in_passes: bool = False

    @abstractmethod
    def value(self, slot: Slot) -> Array:
        """The values of a parameter, in its shape."""

    @abstractmethod
    def gradient(self, slot: Slot) -> Array:
        """The gradient of a parameter, in its shape."""

    @abstractmethod
    def gradient_range(self, start: int, stop: int) -> list[Array]:
        """Where the gradients [start, stop) lie, once backward has written them."""

    def enter(self, layer: str) -> None:
        """A pass comes to a layer of the model itself (not one inside another)."""


class WholeStorage(Storage):
    """Everything in the memory of this rank, or in memory that it shares with others.

    Args:
        values: (n,).
        message: (n + spare,).
    """

    def __init__(self, values: Array, message: Array) -> None:
        self.values = values
        self.message = message
        self.gradients = message[: values.size]
        self._values: dict[str, Array] = {}  # views, by parameter: layers ask in every pass
        self._gradients: dict[str, Array] = {}

    def value(self, slot: Slot) -> Array:
        """A view."""
        view = self._values.get(slot.spec.name)
        if view is None:
            view = self._values[slot.spec.name] = slot.view(self.values)
        return view

    def gradient(self, slot: Slot) -> Array:
        """A view."""
        view = self._gradients.get(slot.spec.name)
        if view is None:
            view = self._gradients[slot.spec.name] = slot.view(self.gradients)
        return view

    def gradient_range(self, start: int, stop: int) -> list[Array]:
        """One view."""
        return [self.gradients[start:stop]]
