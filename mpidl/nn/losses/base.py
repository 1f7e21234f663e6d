"""The loss interface, and the base of regression losses."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import DTypeLike

from mpidl.backend import Array, Ops, accumulator
from mpidl.errors import ConfigError, ShapeError
from mpidl.options import NotNegativeNumber, Place, Section

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LossResult:
    """Gradient and sums of one micro-batch, valid until the loss is called again.

    The sums are computed on access, so that the backward pass need not wait for the GPU.

    Attributes:
        gradient: Gradient of the mean loss of the global batch with respect to the outputs, of
            their shape.
        count: Number of samples.
        losses: (rows,) losses of the samples, or of the positions of all samples.
        elements_per_sample: Divisor that makes the sum of `losses` a sum over samples.
        correct_mask: (rows,) uint8, 1 for correct predictions; None for losses without classes.
    """

    gradient: Array
    count: int
    losses: Array
    elements_per_sample: int = 1
    correct_mask: Array | None = None

    @property
    def total(self) -> float:
        """Sum of the losses over the samples."""
        return float(self.losses.sum(dtype=np.float64)) / self.elements_per_sample

    @property
    def correct(self) -> float:
        """Number of correctly predicted samples; 0 for losses without classes.

        A sample with several positions counts as the fraction of positions that are correct.
        """
        if self.correct_mask is None:
            return 0.0
        return int(self.correct_mask.sum(dtype=np.int64)) / self.elements_per_sample


class Loss(ABC):
    """Base of losses, which are means over the samples of the global batch.

    Args:
        ops: The backend.
        options: Fields of `Options`, by keyword.

    Attributes:
        options: The options of this loss.
        targets: Kind of targets: "classes" (indices, int64) or "values" (real numbers).
        gradient_scale: Factor of the gradient, for 16-bit arithmetic (`mpidl.optim.LossScaler`).

    Raises:
        ConfigError: An option is unknown or impossible.
    """

    class Options(Section, frozen=True):
        """Options of every loss: none."""

    targets: ClassVar[Literal["classes", "values"]]

    def __init__(self, ops: Ops, **options: Any) -> None:
        where = f"{type(self).__name__}(...)"
        self.options = self.Options.read(options, Place(origin=lambda name: where))
        self.ops = ops
        self.workspace = ops.workspace()
        self.gradient_scale = 1.0

    def __call__(self, outputs: Array, targets: Array, global_count: int) -> LossResult:
        """Compute the loss and its gradient for one micro-batch.

        Args:
            outputs: Outputs of the model, (n, ...).
            targets: Targets, (n, ...), of `target_dtype` and of a shape that `check` accepts.
            global_count: Number of samples in the global batch, which divides the gradient.

        Raises:
            ShapeError: The targets do not fit the outputs.
        """
        if len(outputs) != len(targets):
            raise ShapeError(
                f"there are {len(targets)} targets for {len(outputs)} outputs",
                where="loss",
                remedy="give one target per sample",
            )
        self.check(outputs.shape[1:], targets.shape[1:])
        return self.compute(outputs, targets, self.gradient_scale / max(global_count, 1))

    @abstractmethod
    def check(self, output_shape: Shape, target_shape: Shape) -> None:
        """Check that targets can be compared with outputs.

        Args:
            output_shape: Shape of the output of a sample.
            target_shape: Shape of the target of a sample.

        Raises:
            ShapeError: They cannot.
        """

    def check_outputs(self, output_shape: Shape) -> None:
        """Check that the options fit a model, before the first step.

        Args:
            output_shape: Shape of the output of a sample.

        Raises:
            ConfigError: They do not.
        """

    @abstractmethod
    def target_dtype(self, dtype: DTypeLike) -> np.dtype[Any]:
        """Dtype of the targets for outputs of `dtype`."""

    @abstractmethod
    def compute(self, outputs: Array, targets: Array, scale: float) -> LossResult:
        """Compute the loss and its gradient; shapes have been checked.

        Args:
            outputs: Outputs of the model, (n, ...).
            targets: Targets, (n, ...).
            scale: Factor of the gradient of the sum over the samples.
        """


class RegressionLoss(Loss):
    """Base of losses between outputs and real targets of the same shape: vectors, series, fields.

    Attributes:
        kind: Name of the loss in the kernel `pair_loss`.
        threshold: Parameter `delta` of that kernel.
        averages_elements: Whether the loss of a sample is the mean over its elements.
    """

    targets = "values"
    kind: ClassVar[str]
    averages_elements: ClassVar[bool] = True
    threshold = 1.0

    def check(self, output_shape: Shape, target_shape: Shape) -> None:
        if squeeze(output_shape) != squeeze(target_shape):
            raise ShapeError(
                f"the model's outputs have shape {tuple(output_shape)}, the targets "
                f"{tuple(target_shape)}",
                where="loss",
                remedy="make them equal: change the last layer of the model or the targets of the "
                "data set, or choose a loss for classes (cross_entropy)",
            )

    def target_dtype(self, dtype: DTypeLike) -> np.dtype[Any]:
        return accumulator(np.dtype(dtype))

    def compute(self, outputs: Array, targets: Array, scale: float) -> LossResult:
        samples = len(outputs)
        size = math.prod(outputs.shape[1:])
        elements = max(size, 1) if self.averages_elements else 1
        rows = outputs.reshape(samples, size)
        losses, gradient = self._compare(rows, targets.reshape(rows.shape), scale / elements)
        return LossResult(gradient.reshape(outputs.shape), samples, losses, elements)

    def _compare(self, rows: Array, targets: Array, scale: float) -> tuple[Array, Array]:
        """Losses and gradient of rows."""
        losses = self.workspace.get("losses", (len(rows),), accumulator(rows.dtype))
        gradient = self.workspace.get("gradient", rows.shape, rows.dtype)
        self.ops.pair_loss(
            rows, targets, losses, gradient, kind=self.kind, scale=scale, delta=self.threshold
        )
        return losses, gradient


class WeightedOptions(Loss.Options, frozen=True):
    """Options of a loss whose channels may have weights.

    Attributes:
        weights: Factors of the losses of the channels, the last axis of an output; none: all 1.
    """

    weights: tuple[NotNegativeNumber, ...] = ()

    def check(self, place: Place) -> None:
        """Some weight must count."""
        if self.weights and not any(self.weights):
            raise place.error(
                f"{place.name('weights')} are all 0",
                "weights",
                remedy="give one above 0, or leave them out",
            )


class WeightedLoss(RegressionLoss):
    """Base of losses that are a mean over elements, whose channels may have weights.

    Their options are `WeightedOptions`.
    """

    options: Any

    def __init__(self, ops: Ops, **options: Any) -> None:
        super().__init__(ops, **options)
        self._weights = ops.to_device(np.array(self.options.weights))

    def check_outputs(self, output_shape: Shape) -> None:
        channels, weights = (output_shape or (1,))[-1], self.options.weights
        if weights and len(weights) != channels:
            raise ConfigError(
                f"loss.weights has {len(weights)} number(s), but outputs of shape {output_shape} "
                f"have {channels} channel(s)",
                where="loss.weights",
                remedy="give one weight for each channel of the targets",
            )

    def compute(self, outputs: Array, targets: Array, scale: float) -> LossResult:
        if not self.options.weights:
            return super().compute(outputs, targets, scale)
        self.check_outputs(outputs.shape[1:])
        channels, samples, xp = len(self.options.weights), len(outputs), self.ops.xp
        points = math.prod(outputs.shape[1:]) // channels
        # rows of one channel each, which the kernels compare like samples
        rows = [
            xp.ascontiguousarray(array.reshape(samples, points, channels).transpose(0, 2, 1))
            for array in (outputs, targets)
        ]
        elements = max(points * channels, 1)
        x, y = (row.reshape(samples * channels, points) for row in rows)
        losses, gradient = self._compare(x, y, scale / elements)
        if self._weights.dtype != losses.dtype:
            self._weights = self._weights.astype(losses.dtype)
        weights = self._weights
        weighted = self.workspace.get("weighted", outputs.shape, outputs.dtype)
        weighted.reshape(samples, points, channels)[...] = (
            gradient.reshape(samples, channels, points) * weights[:, None]
        ).transpose(0, 2, 1)
        return LossResult(weighted, samples, losses.reshape(samples, channels) @ weights, elements)


def squeeze(shape: Shape) -> Shape:
    """Drop axes of length 1: labels (n,) and (n, 1), or a single channel, are equivalent."""
    return tuple(size for size in shape if size != 1)
