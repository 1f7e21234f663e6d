"""What a trained model expects of a data set; stored in its checkpoints."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import msgspec

from mpidl.data.manifest import Manifest
from mpidl.errors import DataError

Shape = tuple[int, ...]
OTHER_DATA = "use the data set the model was made for, or train a new model"


class FieldSpec(msgspec.Struct, frozen=True):
    """One field, and its normalization, (value - mean) / std.

    Attributes:
        name: Of the field.
        shape: Of one sample.
        mean: One number, or one for each channel (the last axis).
        std: As `mean`.
    """

    name: str
    shape: Shape
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def check(self, manifest: Manifest, where: str) -> None:
        """Refuse a data set without this field.

        Raises:
            DataError: There is no field of this name and shape.
        """
        field = manifest.fields.get(self.name)
        if field is None or field.shape != self.shape:
            found = "no such field" if field is None else f"shape {field.shape}"
            raise DataError(
                f"the model takes {self.name!r} of shape {self.shape}, the data set has {found}",
                where=where,
                remedy=OTHER_DATA,
            )


class TargetSpec(msgspec.Struct, frozen=True):
    """What a model is compared with.

    Attributes:
        fields: Label fields; none where the inputs are their own targets.
        classes: Number of classes; None where targets are real values.
        class_names: Of labels that were words in the source.
        shape: Of the real values of one sample, all fields together.
    """

    fields: tuple[FieldSpec, ...] = ()
    classes: int | None = None
    class_names: tuple[str, ...] | None = None
    shape: Shape = ()

    @property
    def names(self) -> str:
        """The fields, for messages."""
        return ", ".join(field.name for field in self.fields)


class InputSpec(msgspec.Struct, frozen=True, dict=True):
    """What a trained model expects of a data set.

    Attributes:
        task: Name of the task.
        features: Input fields, which are joined along their channels.
        target: What outputs are compared with.
        layout: What fields (a, b) are, see `DataConfig`.
    """

    task: str
    features: tuple[FieldSpec, ...]
    target: TargetSpec
    layout: Literal["image", "series"] = "image"

    @cached_property  # asked for in every batch
    def shape(self) -> Shape:
        """Shape of one sample with all input fields, NHWC for images.

        A gray image (h, w) gets one channel, a series (t, c) is what it is.
        """
        return join_shapes([field.shape for field in self.features], self.layout)

    @property
    def field_names(self) -> list[str]:
        """All fields that training reads."""
        return list(dict.fromkeys(f.name for f in (*self.features, *self.target.fields)))

    @property
    def feature_names(self) -> str:
        """The input fields, for messages."""
        return ", ".join(field.name for field in self.features)


def channel_shape(shape: Shape, layout: str) -> Shape:
    """`shape` with a last axis of channels: gray images get one, and single numbers."""
    if not shape or (len(shape) == 2 and layout == "image"):
        return (*shape, 1)
    return shape


def join_shapes(shapes: list[Shape], layout: str) -> Shape:
    """Shape of fields joined along their channels; one field is what it is.

    Raises:
        DataError: The other axes differ.
    """
    if len(shapes) == 1 and len(shapes[0]) != 2:
        return shapes[0]
    whole = [channel_shape(shape, layout) for shape in shapes]
    if len({shape[:-1] for shape in whole}) > 1:
        raise DataError(
            f"fields of the shapes {', '.join(map(str, shapes))} cannot be joined along their "
            "channels: the other axes differ",
            remedy="name fields of the same size, or one field",
        )
    return (*whole[0][:-1], sum(shape[-1] for shape in whole))
