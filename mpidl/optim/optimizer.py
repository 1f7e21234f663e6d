"""What an optimizer is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from mpidl.backend import Array, Ops
from mpidl.nn import FlatParameters, ParameterShard
from mpidl.options import NotNegativeNumber, Place, Section

Parameters = FlatParameters | ParameterShard


class Optimizer(ABC):
    """Changes `parameters.values` from `parameters.gradients`.

    Args:
        parameters: The whole flat buffer, or the shard of it that this rank updates.
        ops: The backend of its arrays.
        options: Fields of `Options`, by keyword.

    Attributes:
        options: What it was told.
        state: Buffers (n,) like the values, by name; checkpoints have them.
        count: Steps taken so far.

    Raises:
        ConfigError: An option is unknown or impossible.
    """

    class Options(Section, frozen=True):
        """Options of every optimizer.

        Attributes:
            weight_decay: Decay of the parameters, in units of the learning rate.
        """

        weight_decay: NotNegativeNumber = 0.0

    buffers: ClassVar[tuple[str, ...]] = ()  # names of its state
    per_tensor: ClassVar[bool] = False  # whether its rule looks at whole tensors

    def __init__(self, parameters: Parameters, ops: Ops, **options: Any) -> None:
        where = f"{type(self).__name__}(...)"
        self.options = self.Options.read(options, Place(origin=lambda name: where))
        self.ops = ops
        self.count = 0
        self.bind(parameters)

    def bind(self, parameters: Parameters) -> None:
        """Work on `parameters` from now on, with fresh state: a strategy leaves a shard."""
        self.parameters = parameters
        self.state: dict[str, Array] = {
            name: self.ops.xp.zeros_like(parameters.values) for name in self.buffers
        }

    @classmethod
    def is_sparse(cls, options: Section) -> bool:
        """Whether elements without a gradient keep their values."""
        return False

    def step(self, lr: float) -> None:
        """Update the parameters from the gradients with learning rate `lr`."""
        self.count += 1
        self._update(lr)

    @abstractmethod
    def _update(self, lr: float) -> None: ...
