"""What is known of a data set when a configuration for it is suggested."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from mpidl.data.manifest import Field, Manifest
from mpidl.task.spec import Shape, join_shapes

Layout = Literal["image", "series"]
Kind = Literal["tokens", "vector", "series", "image", "other"]
NARROW = 8  # fewer rows or columns are no image
FEWEST = 4  # points of an axis of space
CHANNELS = 8  # an axis of at most so many holds channels, not places


@dataclass(frozen=True)
class Setting:
    """One line of a configuration.

    Attributes:
        key: Its name in the section.
        value: Its value.
        why: The reason, in one sentence.
        active: False: only shown, as a comment.
    """

    key: str
    value: Any
    why: str
    active: bool = True


@dataclass(frozen=True)
class Block:
    """One section of a configuration.

    Attributes:
        name: Of the section.
        settings: Its lines.
    """

    name: str
    settings: tuple[Setting, ...]

    def value(self, key: str) -> Any:
        """The value of an active setting; None where there is none."""
        return next((s.value for s in self.settings if s.key == key and s.active), None)


@dataclass(frozen=True)
class Facts:
    """A data set and the machine it is to be trained on.

    Attributes:
        folders: The training data.
        test: The test data, if there are any.
        manifest: Of all training data together.
        features: The input fields.
        labels: The label fields; none where inputs are their own targets.
        task: What will be trained.
        cores: Cores of this machine.
        ranks: Number of ranks that the user wants; None: any.
        counts: Samples (pixels of masks) of each class, where they were counted; without `ignore`.
        ignore: Number in masks that stands for no class; -1: there is none.
        look_like_classes: Whether labels of real numbers are few whole numbers.
    """

    folders: tuple[str, ...]
    test: str | None
    manifest: Manifest
    features: dict[str, Field]
    labels: dict[str, Field]
    task: str
    cores: int = 1
    ranks: int | None = None
    counts: tuple[int, ...] = ()
    ignore: int = -1
    look_like_classes: bool = False

    @property
    def samples(self) -> int:
        """Training samples."""
        return self.manifest.samples

    @cached_property
    def layout(self) -> Layout | None:
        """What fields (a, b) are; None where the inputs have none."""
        if self.is_rollout:
            return None
        flat = [field for field in self.features.values() if len(field.shape) == 2]
        return choose_layout(flat[0], self.labels) if flat else None

    @property
    def is_rollout(self) -> bool:
        """Whether samples are trajectories, of one field (t, ...)."""
        return self.task == "rollout"

    @cached_property
    def frame_axes(self) -> int:
        """Axes of space in a frame of a trajectory (t, *space, channels); 0 for vectors."""
        frame = next(iter(self.features.values())).shape[1:]
        if len(frame) == 1:
            return int(frame[0] >= FEWEST)
        if len(frame) == 2:
            return 1 if frame[-1] <= CHANNELS else 2
        return len(frame) - 1

    @cached_property
    def shape(self) -> Shape:
        """Shape of a sample for the model, all input fields together; of a trajectory, a frame."""
        if self.is_rollout:
            frame = next(iter(self.features.values())).shape[1:]
            return frame if len(frame) > self.frame_axes else (*frame, 1)
        shapes = [field.shape for field in self.features.values()]
        return join_shapes(shapes, self.layout or "image")

    @cached_property
    def kind(self) -> Kind:
        """What a sample is."""
        if self.task == "language_model":
            return "tokens"
        kinds: dict[int, Kind] = {0: "vector", 1: "vector", 2: "series", 3: "image"}
        return kinds.get(len(self.shape), "other")

    @property
    def elements(self) -> int:
        """Numbers in a sample."""
        return math.prod(self.shape)

    @property
    def is_bytes(self) -> bool:
        """Whether inputs are bytes, as pixels of photographs are."""
        return all(np.dtype(field.dtype) == np.uint8 for field in self.features.values())

    @property
    def has_real_inputs(self) -> bool:
        """Whether inputs are floating-point numbers."""
        return all(np.dtype(field.dtype).kind == "f" for field in self.features.values())

    @property
    def has_field_targets(self) -> bool:
        """Whether there is a target for every place of the input."""
        if self.is_rollout:
            return self.frame_axes > 0
        space = self.shape[:-1]
        fields = self.task in ("regression", "segmentation")
        return bool(fields and space and self.labels) and all(
            field.shape[: len(space)] == space and len(field.shape) <= len(self.shape)
            for field in self.labels.values()
        )

    @property
    def classes(self) -> int:
        """Classes of the label, or tokens; 0 for real numbers."""
        fields = self.labels or self.features
        return next(iter(fields.values())).classes or 0

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, if they have any."""
        return next((f.class_names or () for f in self.labels.values()), ())

    @property
    def imbalance(self) -> float:
        """Samples of the largest class for each one of the smallest that has any."""
        known = [count for count in self.counts if count]
        return max(known) / min(known) if known else 1.0


def choose_layout(field: Field, labels: dict[str, Field]) -> Layout:
    """Whether a field (a, b) is a gray image (height, width) or a series (steps, channels).

    Args:
        field: The input.
        labels: The label fields.
    """
    rows, columns = field.shape
    for label in labels.values():
        if label.shape[:2] == field.shape:
            flat = len(label.shape) == 2 and label.classes is None
            grid = not flat or min(rows, columns) >= NARROW
            return "image" if grid else "series"
    if any(label.shape[:1] == (rows,) and len(label.shape) <= 2 for label in labels.values()):
        return "series"
    if np.dtype(field.dtype) == np.uint8 and min(rows, columns) > 1:
        return "image"
    return "series" if min(rows, columns) < NARROW or rows >= 4 * columns else "image"


def power_below(number: float) -> int:
    """The largest power of two that is at most `number`; 1 for less than 1."""
    return 1 << max(0, int(number).bit_length() - 1)
