"""What a loss is, and the base of those that compare outputs with real targets."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import DTypeLike

from mpidl.backend import Array, Ops, accumulator
from mpidl.errors import ShapeError
from mpidl.options import Place, Section

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LossResult:
    """The gradient of the mean loss of the global batch, and sums over the samples of one call.

    The sums are taken when they are asked for, so that a GPU need not be waited for before the
    backward pass. All of it is valid until the loss is called again.

    Attributes:
        gradient: Gradient of the outputs, of their shape.
        count: Number of samples.
        losses: (rows,) losses of samples, or of the positions of all samples.
        elements_per_sample: What the sum of `losses` is divided by to have one number a sample.
        correct_mask: (rows,) uint8, 1 for right predictions; None where nothing is right or wrong.
    """

    gradient: Array
    count: int
    losses: Array
    elements_per_sample: int = 1
    correct_mask: Array | None = None

    @property
    def total(self) -> float:
        """Sum of the losses of the samples."""
        return float(self.losses.sum(dtype=np.float64)) / self.elements_per_sample

    @property
    def correct(self) -> float:
        """Number of right predictions, those of a sequence counted as a share of its sample.

        0 where nothing is right or wrong.
        """
        if self.correct_mask is None:
            return 0.0
        return int(self.correct_mask.sum(dtype=np.int64)) / self.elements_per_sample


class Loss(ABC):
    """Mean over the samples of the global batch of a loss between outputs and targets.

    Args:
        ops: The backend.
        options: Fields of `Options`, by keyword.

    Attributes:
        options: What it was told.
        targets: What it compares outputs with: "classes", numbers of classes (int64), or "values",
            real numbers.
        gradient_scale: Multiplies the gradient, for 16-bit arithmetic.

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
        self.space = ops.workspace()
        self.gradient_scale = 1.0

    def __call__(self, outputs: Array, targets: Array, global_count: int) -> LossResult:
        """Loss and gradient of one micro-batch.

        Args:
            outputs: (n, ...) outputs of the model.
            targets: (n, ...) of `target_dtype`, of a shape that `check` accepts.
            global_count: Samples in the batch over all ranks, by which the gradient is divided.

        Raises:
            ShapeError: The targets do not fit the outputs.
        """
        if len(outputs) != len(targets):
            raise ShapeError(
                f"{len(outputs)} outputs have {len(targets)} targets",
                where="loss",
                remedy="give one target for each sample",
            )
        self.check(outputs.shape[1:], targets.shape[1:])
        return self._compute(outputs, targets, self.gradient_scale / max(global_count, 1))

    @abstractmethod
    def check(self, output_shape: Shape, target_shape: Shape) -> None:
        """Refuse targets that cannot be compared with outputs.

        Args:
            output_shape: Of one sample.
            target_shape: Of one sample.

        Raises:
            ShapeError: They do not fit.
        """

    @abstractmethod
    def target_dtype(self, dtype: DTypeLike) -> np.dtype[Any]:
        """The dtype of targets beside outputs of `dtype`."""

    @abstractmethod
    def _compute(self, outputs: Array, targets: Array, scale: float) -> LossResult:
        """Loss and gradient; `scale` multiplies the gradient of the sum over the samples."""


class RegressionLoss(Loss):
    """Base of losses between outputs and real targets of the same shape: vectors, fields, series.

    Attributes:
        kind: The name of the loss in the kernel `pair_loss`.
        threshold: The parameter `delta` of that kernel.
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
                remedy="both must agree: change the last layer of the model, or the targets in "
                "the data; a loss of classes (cross_entropy) takes one more axis in the outputs",
            )

    def target_dtype(self, dtype: DTypeLike) -> np.dtype[Any]:
        return accumulator(np.dtype(dtype))

    def _compute(self, outputs: Array, targets: Array, scale: float) -> LossResult:
        samples = len(outputs)
        size = math.prod(outputs.shape[1:])
        elements = max(size, 1) if self.averages_elements else 1
        rows = outputs.reshape(samples, size)
        losses = self.space.get("losses", (samples,), accumulator(outputs.dtype))
        gradient = self.space.get("gradient", rows.shape, outputs.dtype)
        self.ops.pair_loss(
            rows,
            targets.reshape(rows.shape),
            losses,
            gradient,
            kind=self.kind,
            scale=scale / elements,
            delta=self.threshold,
        )
        return LossResult(gradient.reshape(outputs.shape), samples, losses, elements)


def squeeze(shape: Shape) -> Shape:
    """A shape without its axes of length 1: (n, 1) labels and a single channel mean the same."""
    return tuple(size for size in shape if size != 1)
