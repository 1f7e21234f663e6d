"""Distillation: a model also learns from the outputs of a trained one, its teacher.

Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from msgspec import Meta
from numpy.typing import DTypeLike

from mpidl.backend import Array, Ops, accumulator
from mpidl.nn import Loss, LossResult
from mpidl.options import SET, Rate, Section

Shape = tuple[int, ...]


class DistillConfig(Section, frozen=True):
    """A trained model that this one learns from too.

    Attributes:
        run: Output folder of a run of the same task (its best checkpoint, else the latest), or a
            checkpoint; "": there is no teacher.
        temperature: Divides the logits of both models where they are compared: above 1 the teacher
            also tells unlikely classes from impossible ones. A regression has none.
        weight: Share of the teacher in the loss; the rest is that of the targets.
    """

    NEEDS: ClassVar[dict[str, tuple[str, tuple[Any, ...]]]] = {
        "temperature": ("run", SET),
        "weight": ("run", SET),
    }

    run: str = ""
    temperature: Rate = 2.0
    weight: Annotated[float, Meta(gt=0, le=1)] = 0.5

    @classmethod
    def unfold(cls, value: Any) -> Any:
        """`distill = "runs/teacher"` names the run."""
        return {"run": value} if isinstance(value, str) else value


class SoftLoss(ABC):
    """How far outputs are from those of a teacher; a mean over the samples of the global batch.

    Args:
        ops: The backend.
        temperature: See `DistillConfig`.
    """

    def __init__(self, ops: Ops, temperature: float) -> None:
        self.ops = ops
        self.temperature = temperature
        self.workspace = ops.workspace()

    @abstractmethod
    def compare(self, outputs: Array, taught: Array, targets: Array, scale: float) -> LossResult:
        """Loss and gradient of a micro-batch.

        Args:
            outputs: Of the model, (n, ...).
            taught: Of the teacher, as many elements, in the dtype of losses.
            targets: What the loss of the targets compares with.
            scale: Factor of the gradient of the sum over the samples.
        """

    def softened(self, outputs: Array, name: str) -> Array:
        """Outputs divided by the temperature."""
        held = self.workspace.get(name, outputs.shape, outputs.dtype)
        self.ops.xp.multiply(outputs, outputs.dtype.type(1 / self.temperature), out=held)
        return held


class SoftClasses(SoftLoss):
    """Relative entropy of the softmax of both, times the square of the temperature.

    The square keeps the gradient at the size of that of the targets. As in the cross-entropy, the
    loss of a sample is the mean over its positions, and those with a negative label count nothing.
    """

    def compare(self, outputs: Array, taught: Array, targets: Array, scale: float) -> LossResult:
        positions = max(math.prod(outputs.shape[1:-1]), 1)
        shape = (outputs.size // outputs.shape[-1], outputs.shape[-1])
        own = self.softened(outputs.reshape(shape), "own")
        other = self.softened(taught.reshape(shape), "other")
        space, exact = self.workspace, other.dtype
        shares = space.get("shares", shape, exact)
        self.ops.softmax_forward(other, shares)
        if targets.dtype.kind == "i":
            shares *= self.ops.xp.greater_equal(targets.reshape(-1, 1), 0)
        losses, entropy = (space.get(name, shape[:1], exact) for name in ("losses", "entropy"))
        hits = space.get("hits", shape[:1], np.uint8)
        compare = self.ops.softmax_cross_entropy_shares
        compare(other, shares, entropy, space.get("unused", shape, exact), hits, 0.0)
        gradient = space.get("gradient", shape, own.dtype)
        compare(own, shares, losses, gradient, hits, scale * self.temperature / positions)
        losses -= entropy
        losses *= self.temperature**2
        return LossResult(gradient.reshape(outputs.shape), len(outputs), losses, positions)


class SoftLabels(SoftLoss):
    """As `SoftClasses`, of independent decisions: mean over the labels of a sample."""

    def compare(self, outputs: Array, taught: Array, targets: Array, scale: float) -> LossResult:
        shape = (len(outputs), outputs.size // max(len(outputs), 1))
        own = self.softened(outputs.reshape(shape), "own")
        other = self.softened(taught.reshape(shape), "other")
        space, exact = self.workspace, other.dtype
        shares = space.get("shares", shape, exact)
        self.ops.xp.tanh(other * exact.type(0.5), out=shares)
        shares += 1
        shares *= exact.type(0.5)
        losses, entropy = (space.get(name, shape[:1], exact) for name in ("losses", "entropy"))
        unused = space.get("unused", shape, exact)
        self.ops.pair_loss(other, shares, entropy, unused, kind="bce", scale=0.0)
        gradient, labels = space.get("gradient", shape, own.dtype), max(shape[1], 1)
        factor = scale * self.temperature / labels
        self.ops.pair_loss(own, shares, losses, gradient, kind="bce", scale=factor)
        losses -= entropy
        losses *= self.temperature**2
        return LossResult(gradient.reshape(outputs.shape), len(outputs), losses, labels)


class SoftValues(SoftLoss):
    """Mean squared difference of both, in normalized units."""

    def compare(self, outputs: Array, taught: Array, targets: Array, scale: float) -> LossResult:
        shape = (len(outputs), outputs.size // max(len(outputs), 1))
        losses = self.workspace.get("losses", shape[:1], taught.dtype)
        gradient = self.workspace.get("gradient", shape, outputs.dtype)
        elements = max(shape[1], 1)
        pair = outputs.reshape(shape), taught.reshape(shape)
        self.ops.pair_loss(*pair, losses, gradient, kind="mse", scale=scale / elements)
        return LossResult(gradient.reshape(outputs.shape), len(outputs), losses, elements)


@dataclass(frozen=True)
class _BothResults(LossResult):
    """The result for the targets, with the gradient of both losses.

    Attributes:
        soft: The result for the teacher.
        share: Of the teacher.
    """

    soft: LossResult | None = None
    share: float = 0.0

    @property
    def total(self) -> float:
        taught = 0.0 if self.soft is None else self.soft.total
        return (1 - self.share) * super().total + self.share * taught


class DistilledLoss(Loss):
    """The loss of the targets and that of the teacher, in shares that add up to 1.

    Args:
        own: The loss of the targets.
        soft: That of the teacher.
        share: Of the teacher.

    Attributes:
        taught: Outputs of the teacher for the micro-batch; to be set before each call.
    """

    def __init__(self, own: Loss, soft: SoftLoss, share: float) -> None:
        super().__init__(own.ops)
        self.own = own
        self.soft = soft
        self.share = share
        self.taught: Array | None = None

    def __call__(self, outputs: Array, targets: Array, global_count: int) -> LossResult:
        taught, self.taught = self.taught, None
        assert taught is not None
        self.own.gradient_scale = self.gradient_scale * (1 - self.share)
        found = self.own(outputs, targets, global_count)
        exact = accumulator(outputs.dtype)
        if taught.dtype != exact:
            taught = taught.astype(exact)
        scale = self.gradient_scale * self.share / max(global_count, 1)
        soft = self.soft.compare(outputs, taught, targets, scale)
        gradient = found.gradient
        gradient += soft.gradient
        return _BothResults(
            gradient,
            found.count,
            found.losses,
            found.elements_per_sample,
            found.correct_mask,
            soft,
            self.share,
        )

    def check(self, output_shape: Shape, target_shape: Shape) -> None:
        self.own.check(output_shape, target_shape)

    def check_outputs(self, output_shape: Shape) -> None:
        self.own.check_outputs(output_shape)

    def target_dtype(self, dtype: DTypeLike) -> np.dtype[Any]:
        return self.own.target_dtype(dtype)

    def compute(self, outputs: Array, targets: Array, scale: float) -> LossResult:
        raise NotImplementedError  # `__call__` compares by both losses
