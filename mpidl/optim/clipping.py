"""Gradient clipping by the norm of all gradients together."""

from __future__ import annotations

import math

import numpy as np

from mpidl.backend import Array, Ops
from mpidl.optim.optimizer import Parameters


def squared_norm(parameters: Parameters, flat: Array) -> float:
    """Sum of squares of a buffer.

    Args:
        parameters: What the buffer belongs to; where it is a shard, the sum goes over all shards.
        flat: (n,) values or gradients, or a slice of them.
    """
    ops = parameters.ops
    start, stop = (ops.to_device(np.array([edge], np.int64)) for edge in (0, flat.size))
    square = ops.xp.zeros(1, np.float64)
    ops.slot_squares(flat, start, stop, square)
    total = np.array(ops.to_host(square))
    if parameters.reduce is not None:
        parameters.reduce(total)
    return float(total[0])


def clip_by_global_norm(parameters: Parameters, ops: Ops, limit: float) -> float:
    """Scale all gradients so that their norm is at most `limit` (Pascanu et al., 2013).

    Args:
        parameters: Whose gradients are scaled, in place.
        ops: The backend.
        limit: The largest norm.

    Returns:
        The norm before.
    """
    gradients = parameters.gradients
    norm = math.sqrt(squared_norm(parameters, gradients))
    if norm > limit:
        factor = ops.to_device(np.asarray(limit / norm, parameters.dtype))
        ops.xp.multiply(gradients, factor, out=gradients)
    return norm
