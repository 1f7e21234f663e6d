"""What augmentations have in common: what they know of the samples, and the two kinds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

from mpidl.backend import Array, Ops
from mpidl.backend.contract.augment import Drawn
from mpidl.errors import ConfigError
from mpidl.options import Section

Shape = tuple[int, ...]
CHANCE = 1 << 32  # a probability of 1, as kernels take them
AXES = "dhw"


@dataclass(frozen=True)
class Samples:
    """What the samples of a run are.

    Attributes:
        shape: Of an input, its channels last: (size, channels) to (depth, height, width, channels);
            one axis for a vector.
        layout: Whether the axes before the channels are those of an image (or a field), or steps.
        targets: What targets are.
        target_shape: Of the real values, or of the classes, of a sample.
        scale: Inputs are normalized as raw * scale + shift.
        shift: See `scale`.
        classes: Number of classes; 0: targets are values.
        window: Size of the part of a sample that is taken; none: the whole.
    """

    shape: Shape
    layout: Literal["image", "series"]
    targets: Literal["classes", "values"]
    target_shape: Shape
    scale: float = 1.0
    shift: float = 0.0
    classes: int = 0
    window: Shape = ()

    @property
    def space(self) -> Shape:
        """Axes along which samples can be moved."""
        return self.shape[:-1] if self.layout == "image" else ()

    @property
    def taken(self) -> Shape:
        """The same of what is taken of a sample."""
        return self.window or self.space

    @property
    def taken_shape(self) -> Shape:
        """Shape of an augmented input."""
        return (*self.window, self.channels) if self.window else self.shape

    def taken_target(self, shape: Shape) -> Shape:
        """Shape of targets (n, ...) once they have been moved."""
        return (shape[0], *self.taken, *shape[1 + len(self.space) :])

    @property
    def channels(self) -> int:
        """Channels of an input."""
        return self.shape[-1]

    @property
    def has_field_targets(self) -> bool:
        """Whether a target has a value, or a class, for every place of the input."""
        return bool(self.space) and self.target_shape[: len(self.space)] == self.space

    @property
    def target_elements(self) -> int:
        """Values, or classes, of a target."""
        return math.prod(self.target_shape)

    @property
    def target_channels(self) -> int:
        """Values of a field target at each place."""
        return math.prod(self.target_shape[len(self.space) :])


class Augmentation(ABC):
    """One augmentation, chosen by its name in the section `[augment]`.

    Args:
        options: Its `Options`.
        samples: What it will be applied to.

    Raises:
        ConfigError: It cannot be applied to such samples.
    """

    name: str

    class Options(Section, frozen=True):
        """Options of every augmentation: none."""

    def __init__(self, options: Any, samples: Samples) -> None:
        self.options = options
        self.samples = samples
        self.check()

    def check(self) -> None:
        """Refuse samples that it cannot be applied to.

        Raises:
            ConfigError: It cannot.
        """

    def error(self, what: str, remedy: str = "") -> ConfigError:
        """An error that names the setting."""
        remedy = remedy or f"remove augment.{self.name}"
        return ConfigError(f"augment.{self.name} {what}", where="[augment]", remedy=remedy)

    def needs_space(self, axes: tuple[int, ...], what: str) -> None:
        """Refuse samples without `axes` axes before their channels."""
        if len(self.samples.space) not in axes:
            raise self.error(
                f"needs {what}, but samples have the shape {self.samples.shape} "
                f"({self.samples.layout})"
            )


class Moving(Augmentation):
    """Moves, mirrors or turns samples: all that do share one pass over the batch.

    Where targets are fields, they are moved alike.
    """

    def check(self) -> None:
        target = self.samples.target_shape
        if len(target) > 1 and not self.samples.has_field_targets:
            raise self.error(
                f"would move inputs of shape {self.samples.shape}, but not their targets of shape "
                f"{target}, which have other axes"
            )

    @abstractmethod
    def place(self, record: Any) -> None:
        """Write what may be drawn into a record `augment_geometry`."""


class Pointwise(Augmentation):
    """Changes the values of inputs, not where they are."""

    @abstractmethod
    def apply(self, ops: Ops, x: Array, drawn: Drawn) -> None:
        """Change x (n, *shape), normalized, in place."""
