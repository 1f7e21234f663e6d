"""What an optimizer is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np

from mpidl.backend import Array, Ops
from mpidl.nn import FlatParameters, FlatPart

Parameters = FlatParameters | FlatPart


class Optimizer(ABC):
    """Changes `parameters.values` from `parameters.gradients`. state: (n,) buffers by name; count: steps taken so far."""

    def __init__(self, parameters: Parameters, ops: Ops, *names: str) -> None:
        self.parameters, self.ops, self.count = parameters, ops, 0
        self.state: dict[str, Array] = {
            name: ops.xp.zeros_like(parameters.values) for name in names
        }

    def rebind(self, parameters: Parameters) -> None:
        """Work on other parameters from now on, with fresh state: those that a strategy leaves to this rank."""
        self.parameters = parameters
        self.state = {name: self.ops.xp.zeros_like(parameters.values) for name in self.state}

    def step(self, lr: float) -> None:
        """Update the parameters from the gradients with learning rate `lr`."""
        self.count += 1
        self._update(lr)

    @abstractmethod
    def _update(self, lr: float) -> None: ...


class Slots:
    """The tensors of a model as ranges of the flat buffer, for rules that look at each on its own.

    weight: (slots,) whether each has more than one axis; biases and scales of norms do not.
    """

    def __init__(self, parameters: Parameters, ops: Ops) -> None:
        self.reduce = parameters.reduce
        slots = list(parameters.slots.values())
        self.ops = ops
        self.starts, self.stops = (
            ops.to_device(np.array(edges, np.int64))
            for edges in ([slot.start for slot in slots], [slot.stop for slot in slots])
        )
        self.weight = np.array([len(slot.spec.shape) > 1 for slot in slots])
        self._squares = ops.xp.zeros(len(slots), np.float64)

    def norms(self, flat: Array) -> np.ndarray:
        """(slots,) Euclidean norms, float64, on the host."""
        self.ops.slot_squares(flat, self.starts, self.stops, self._squares)
        squares = np.array(self.ops.to_host(self._squares))
        if self.reduce is not None:
            self.reduce(squares)
        result: np.ndarray = np.sqrt(squares)
        return result

    def scale(self, flat: Array, factors: np.ndarray) -> None:
        """Multiply each tensor by its factor."""
        self.ops.slot_scale(
            flat,
            self.starts,
            self.stops,
            self.ops.to_device(np.ascontiguousarray(factors, np.float64)),
        )


def squared_norm(parameters: Parameters, flat: Array) -> float:
    """Sum of squares of (some of) a buffer like the parameters'; over all parts, if they are one of several."""
    ops = parameters.ops
    ends = [ops.to_device(np.array([edge], np.int64)) for edge in (0, flat.size)]
    square = ops.xp.zeros(1, np.float64)
    ops.slot_squares(flat, ends[0], ends[1], square)
    total = np.array(ops.to_host(square))
    if parameters.reduce is not None:
        parameters.reduce(total)
    return float(total[0])


def clip_by_global_norm(parameters: Parameters, ops: Ops, limit: float) -> float:
    """Scale all gradients so that their common norm is at most `limit`; returns the norm before (Pascanu et al., 2013)."""
    norm = math.sqrt(squared_norm(parameters, parameters.gradients))
    if norm > limit:
        ops.xp.multiply(
            parameters.gradients,
            ops.to_device(np.asarray(limit / norm, parameters.dtype)),
            out=parameters.gradients,
        )
    return norm
