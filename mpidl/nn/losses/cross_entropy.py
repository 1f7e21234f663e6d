"""Cross-entropy for classification."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mpidl.backend import Array, accumulator
from mpidl.errors import ShapeError
from mpidl.nn.losses.base import Loss, LossResult, Shape, squeeze
from mpidl.options import Share


class CrossEntropy(Loss):
    """Softmax cross-entropy of logits (n, ..., classes) and class indices (n, ...), int64.

    The loss of a sample is the mean over its positions (tokens, pixels). A position with a negative
    label has loss 0 and no gradient, but counts in that mean.
    """

    class Options(Loss.Options, frozen=True):
        """Options of cross_entropy.

        Attributes:
            label_smoothing: Share of the target that is spread over all classes (Szegedy et al.,
                2016).
        """

        label_smoothing: Share = 0.0

    options: Options
    targets = "classes"

    def check(self, output_shape: Shape, target_shape: Shape) -> None:
        if not output_shape or squeeze(output_shape[:-1]) != squeeze(target_shape):
            raise ShapeError(
                f"the model's outputs have shape {tuple(output_shape)}, the class labels "
                f"{tuple(target_shape)}",
                where="loss",
                remedy="give outputs the shape of the labels and a last axis of classes, or for "
                "real targets a loss such as mse",
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
        self.ops.softmax_cross_entropy(
            logits,
            targets.reshape(-1),
            losses,
            gradient,
            correct,
            scale / positions,
            self.options.label_smoothing,
        )
        return LossResult(gradient.reshape(outputs.shape), samples, losses, positions, correct)
