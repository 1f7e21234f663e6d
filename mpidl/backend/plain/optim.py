"""Optimizer steps and norms of slots."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

NDArr = NDArray[Any]


def sgd_step(
    p: NDArr,
    g: NDArr,
    v: NDArr,
    n: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: int,
) -> None:
    """OptimOps.sgd_step."""
    real = p.dtype.type
    grad = g + real(weight_decay) * p
    v *= real(momentum)
    v += grad
    p -= real(lr) * (grad + real(momentum) * v if nesterov else v)


def adam_step(
    p: NDArr,
    g: NDArr,
    m: NDArr,
    v: NDArr,
    n: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    fix1: float,
    fix2: float,
    decoupled: int,
) -> None:
    """OptimOps.adam_step."""
    real = p.dtype.type
    grad = g if decoupled else g + real(decay) * p
    m[...] = real(beta1) * m + real(1 - beta1) * grad
    v[...] = real(beta2) * v + real(1 - beta2) * grad * grad
    if decoupled:
        p *= real(1 - lr * decay)
    p -= real(lr / fix1) * m / (np.sqrt(v) * real(fix2**-0.5) + real(eps))


def adam_direction(
    p: NDArr,
    g: NDArr,
    m: NDArr,
    v: NDArr,
    u: NDArr,
    n: int,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    fix1: float,
    fix2: float,
) -> None:
    """OptimOps.adam_direction."""
    real = p.dtype.type
    m[...] = real(beta1) * m + real(1 - beta1) * g
    v[...] = real(beta2) * v + real(1 - beta2) * g * g
    u[...] = m / real(fix1) / (np.sqrt(v) * real(fix2**-0.5) + real(eps)) + real(decay) * p


def sparse_sgd(p: NDArr, g: NDArr, n: int, lr: float) -> None:
    """OptimOps.sparse_sgd."""
    places = np.flatnonzero(g)
    p[places] -= p.dtype.type(lr) * g[places]


def slot_squares(x: NDArr, starts: NDArr, stops: NDArr, squares: NDArr, slots: int) -> None:
    """OptimOps.slot_squares."""
    for slot in range(slots):
        part = x[starts[slot] : stops[slot]].astype(np.float64)
        squares[slot] = part @ part


def slot_scale(x: NDArr, starts: NDArr, stops: NDArr, factors: NDArr, slots: int) -> None:
    """OptimOps.slot_scale."""
    for slot in range(slots):
        x[starts[slot] : stops[slot]] *= x.dtype.type(factors[slot])
