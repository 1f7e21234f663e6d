"""Cross-entropy for classification."""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import DTypeLike

from mpidl.backend import Array, Ops, accumulator
from mpidl.errors import ConfigError, ShapeError
from mpidl.nn.losses.base import Loss, LossResult, Shape, squeeze
from mpidl.options import Share

Weight = Annotated[float, Meta(ge=0)]


class CrossEntropy(Loss):
    """Softmax cross-entropy of logits (n, ..., classes) and class indices (n, ...), int64.

    Targets may also be floating shares of all classes (n, ..., classes): of samples that are mixed.
    The loss of a sample is the mean over its positions (tokens, pixels). A position with a negative
    label has loss 0 and no gradient, but counts in that mean.
    """

    class Options(Loss.Options, frozen=True):
        """Options of cross_entropy.

        Attributes:
            label_smoothing: Share of the target that is spread over all classes (Szegedy et al.,
                2016).
            class_weights: Factor of the loss of each class, for classes of different size; [] for
                none. The mean is over samples, not over weights.
        """

        label_smoothing: Share = 0.0
        class_weights: tuple[Weight, ...] = ()

    options: Options
    targets = "classes"

    def __init__(self, ops: Ops, **options: Any) -> None:
        super().__init__(ops, **options)
        weights = self.options.class_weights
        # the last is that of positions without a class: index -1
        self.weights = ops.to_device(np.array([*weights, 0.0])) if weights else None

    def __call__(self, outputs: Array, targets: Array, global_count: int) -> LossResult:
        if targets.dtype.kind != "f":
            return super().__call__(outputs, targets, global_count)
        self.check(outputs.shape[1:], targets.shape[1:-1])
        if outputs.shape != targets.shape:
            raise ShapeError(
                f"the model's outputs have shape {tuple(outputs.shape)}, the shares of classes "
                f"{tuple(targets.shape)}",
                where="loss",
                remedy="give a share for each class",
            )
        return self.compute(outputs, targets, self.gradient_scale / max(global_count, 1))

    def check(self, output_shape: Shape, target_shape: Shape) -> None:
        if not output_shape or squeeze(output_shape[:-1]) != squeeze(target_shape):
            raise ShapeError(
                f"the model's outputs have shape {tuple(output_shape)}, the class labels "
                f"{tuple(target_shape)}",
                where="loss",
                remedy="give outputs the shape of the labels and a last axis of classes, or for "
                "real targets a loss such as mse",
            )
        if self.weights is not None and len(self.weights) != output_shape[-1] + 1:
            raise ConfigError(
                f"loss.class_weights has {len(self.weights) - 1} numbers for {output_shape[-1]} "
                "classes",
                where="loss.class_weights",
                remedy="give one for each class",
            )

    def target_dtype(self, dtype: DTypeLike) -> np.dtype[Any]:
        return np.dtype(np.int64)

    def compute(self, outputs: Array, targets: Array, scale: float) -> LossResult:
        samples = len(outputs)
        positions = max(math.prod(outputs.shape[1:-1]), 1)
        logits = outputs.reshape(-1, outputs.shape[-1])
        losses = self.workspace.get("losses", (len(logits),), accumulator(outputs.dtype))
        correct = self.workspace.get("correct", (len(logits),), np.uint8)
        gradient = self.workspace.get("gradient", logits.shape, outputs.dtype)
        arrays, numbers = (
            (losses, gradient, correct),
            (scale / positions, self.options.label_smoothing),
        )
        if targets.dtype.kind == "f":
            shares = targets.reshape(logits.shape)
            if self.weights is not None:
                shares = (shares * self.weights[:-1]).astype(losses.dtype)
            self.ops.softmax_cross_entropy_shares(logits, shares, *arrays, *numbers)
            return LossResult(gradient.reshape(outputs.shape), samples, losses, positions, correct)
        self.ops.softmax_cross_entropy(logits, targets.reshape(-1), *arrays, *numbers)
        if self.weights is not None:
            factors = self.weights[self.ops.xp.maximum(targets.reshape(-1), -1)]
            losses *= factors.astype(losses.dtype)
            gradient *= factors.astype(gradient.dtype)[:, None]
        return LossResult(gradient.reshape(outputs.shape), samples, losses, positions, correct)
