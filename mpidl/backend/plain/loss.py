"""Losses."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.backend.headers import codes
from mpidl.backend.plain.pointwise import _sigmoid

NDArr = NDArray[Any]
_NAMES = {number: name for name, number in codes("LOSS").items()}


def softmax_cross_entropy(
    logits: NDArr,
    labels: NDArr,
    loss: NDArr,
    dlogits: NDArr,
    hit: NDArr,
    rows: int,
    classes: int,
    scale: float,
    smoothing: float,
) -> None:
    """LossOps.softmax_cross_entropy."""
    real = logits.dtype.type
    counted = labels >= 0
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True)
    target = np.full_like(logits, smoothing / classes)
    target[np.arange(rows), np.maximum(labels, 0)] += real(1 - smoothing)
    loss[...] = np.where(counted, np.log(total[:, 0]) - (target * shifted).sum(axis=1), 0)
    hit[...] = counted & (logits.argmax(axis=1) == labels)
    dlogits[...] = np.where(counted[:, None], (np.exp(shifted) / total - target) * real(scale), 0)


def softmax_cross_entropy_shares(
    logits: NDArr,
    shares: NDArr,
    loss: NDArr,
    dlogits: NDArr,
    hit: NDArr,
    rows: int,
    classes: int,
    scale: float,
    smoothing: float,
) -> None:
    """LossOps.softmax_cross_entropy_shares."""
    real = logits.dtype.type
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True)
    weight = shares.sum(axis=1, keepdims=True)
    target = real(1 - smoothing) * shares + weight * real(smoothing / classes)
    loss[...] = weight[:, 0] * np.log(total[:, 0]) - (target * shifted).sum(axis=1)
    hit[...] = (logits.argmax(axis=1) == shares.argmax(axis=1)) & (weight[:, 0] > 0)
    dlogits[...] = (weight * np.exp(shifted) / total - target) * real(scale)


def pair_loss(
    x: NDArr,
    target: NDArr,
    loss: NDArr,
    dx: NDArr,
    rows: int,
    cols: int,
    scale: float,
    kind: int,
    delta: float,
) -> None:
    """LossOps.pair_loss."""
    error = x - target
    name = _NAMES[kind]
    if name == "relative_l2":
        size, norm = (np.linalg.norm(part, axis=1) for part in (error, target))
        norm = np.where(norm <= delta, 1, norm)
        loss[...] = size / norm
        # where x equals the target the norm has no derivative: 0 is in its subdifferential
        factor = np.divide(scale, size * norm, out=np.zeros_like(norm), where=size != 0)
        dx[...] = error * factor[:, None]
        return
    if name == "mse":
        each, slope = error**2, 2 * error
    elif name == "huber":
        size = np.abs(error)
        each = np.where(size <= delta, 0.5 * error**2, delta * (size - 0.5 * delta))
        slope = np.clip(error, -delta, delta)
    elif name == "mae":
        each, slope = np.abs(error), np.sign(error)
    else:
        each = np.maximum(x, 0) - x * target + np.log1p(np.exp(-np.abs(x)))
        slope = _sigmoid(x) - target
    loss[...] = each.sum(axis=1)
    dx[...] = slope * scale
