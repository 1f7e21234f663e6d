"""Losses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mpidl.backend import Array, Ops, accumulator


@dataclass(frozen=True)
class LossResult:
    """The gradient of the mean over the global batch, as the input, and sums over this rank's part of it.

    The sums are taken when they are asked for, so that a GPU need not be waited for before the backward pass. All of it is
    valid until the loss is called again. losses: (n,) of samples; width: by which their sum is divided; hits: (n,) uint8, or
    None.
    """

    gradient: Array
    losses: Array
    width: int = 1
    hits: Array | None = None

    @property
    def total(self) -> float:
        """Sum of the losses."""
        return float(self.losses.sum(dtype=np.float64)) / self.width

    @property
    def correct(self) -> int:
        """How many predictions were right; 0 where that has no meaning."""
        return 0 if self.hits is None else int(self.hits.sum(dtype=np.int64))


class SoftmaxCrossEntropy:
    """Mean over the batch of -sum of target * log softmax(logits); the target is spread a little with `smoothing` (Szegedy
    et al., 2016).

    Each position of a sequence counts as a sample. Negative labels count nothing. gradient_scale: multiplies the gradient, for
    16-bit arithmetic.
    """

    def __init__(self, ops: Ops, *, smoothing: float = 0.0) -> None:
        self.ops, self.space, self.smoothing, self.gradient_scale = (
            ops,
            ops.workspace(),
            smoothing,
            1.0,
        )

    def __call__(self, logits: Array, labels: Array, global_count: int) -> LossResult:
        """logits: (n, ..., classes); labels: (n, ...) int64 below classes; global_count: labels in the batch over all ranks."""
        flat = logits.reshape(-1, logits.shape[-1])
        n = flat.shape[0]
        loss = self.space.get("loss", (n,), accumulator(logits.dtype))
        hit = self.space.get("hit", (n,), np.uint8)
        gradient = self.space.get("gradient", flat.shape, logits.dtype)
        scale = self.gradient_scale / max(global_count, 1)
        self.ops.softmax_cross_entropy(
            flat, labels.reshape(-1), loss, gradient, hit, scale, self.smoothing
        )
        return LossResult(gradient.reshape(logits.shape), loss, hits=hit)


class PairLoss:
    """Mean over the elements of the batch of a loss between prediction and target of the same shape.

    kind: "mse" squared error; "huber" with threshold delta (Huber, 1964); "bce" binary cross-entropy of logits. gradient_scale:
    multiplies the gradient, for 16-bit arithmetic.
    """

    def __init__(self, ops: Ops, kind: str = "mse", *, delta: float = 1.0) -> None:
        self.ops, self.space, self.kind, self.delta, self.gradient_scale = (
            ops,
            ops.workspace(),
            kind,
            delta,
            1.0,
        )

    def __call__(self, x: Array, target: Array, global_count: int) -> LossResult:
        """x, target: (n, ...); global_count: samples in the batch over all ranks. total is the sum over samples of their
        means."""
        width = math.prod(x.shape[1:])
        rows = x.reshape(x.shape[0], width)
        loss = self.space.get("loss", (x.shape[0],), accumulator(x.dtype))
        gradient = self.space.get("gradient", rows.shape, x.dtype)
        scale = self.gradient_scale / (max(global_count, 1) * max(width, 1))
        self.ops.pair_loss(
            rows,
            target.reshape(rows.shape),
            loss,
            gradient,
            kind=self.kind,
            scale=scale,
            delta=self.delta,
        )
        return LossResult(gradient.reshape(x.shape), loss, max(width, 1))
