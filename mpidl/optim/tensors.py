"""The tensors of a model as ranges of the flat buffer, for rules that look at each on its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpidl.backend import Array, Ops
from mpidl.optim.optimizer import Optimizer, Parameters


class Tensors:
    """Norms and factors of single tensors.

    Args:
        parameters: The flat buffer or a shard.
        ops: The backend.

    Attributes:
        is_matrix: (tensors,) whether each has more than one axis; biases and scales of norms do
            not.
    """

    def __init__(self, parameters: Parameters, ops: Ops) -> None:
        slots = list(parameters.slots.values())
        self.reduce = parameters.reduce
        self.ops = ops
        self.starts = ops.to_device(np.array([slot.start for slot in slots], np.int64))
        self.stops = ops.to_device(np.array([slot.stop for slot in slots], np.int64))
        self.is_matrix = np.array([len(slot.spec.shape) > 1 for slot in slots])
        self._squares = ops.xp.zeros(len(slots), np.float64)

    def norms(self, flat: Array) -> NDArray[np.float64]:
        """The Euclidean norm of each tensor.

        Args:
            flat: (n,) like the values.

        Returns:
            (tensors,) on the host; over all shards where there are several.
        """
        self.ops.slot_squares(flat, self.starts, self.stops, self._squares)
        squares = np.array(self.ops.to_host(self._squares))
        if self.reduce is not None:
            self.reduce(squares)
        return np.asarray(np.sqrt(squares))

    def scale(self, flat: Array, factors: NDArray[np.float64]) -> None:
        """Multiply each tensor by its factor.

        Args:
            flat: (n,) like the values, in place.
            factors: (tensors,).
        """
        on_device = self.ops.to_device(np.ascontiguousarray(factors, np.float64))
        self.ops.slot_scale(flat, self.starts, self.stops, on_device)


class PerTensorOptimizer(Optimizer):
    """Base of the rules that scale the step of each tensor to the size of that tensor."""

    per_tensor = True

    def bind(self, parameters: Parameters) -> None:
        """Also the ranges of the tensors, and two buffers for the direction of a step."""
        super().bind(parameters)
        self.tensors = Tensors(parameters, self.ops)
        self._direction = self.ops.xp.zeros_like(parameters.values)
        self._decay = self.ops.xp.zeros_like(parameters.values)

    def _add_decay(self, direction: Array) -> None:
        """Add weight decay of matrices to the direction; vectors do not decay."""
        if self.options.weight_decay:
            self._decay[...] = self.parameters.values
            self.tensors.scale(self._decay, self.tensors.is_matrix * self.options.weight_decay)
            self.ops.add(direction, self._decay, direction, relu=False)
