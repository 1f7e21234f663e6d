"""The model interface: a function that returns layers, and metadata about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, cast

from mpidl.nn import Layer

Shape = tuple[int, ...]
# How samples (a, b) are read: as gray images (h, w), or as series (t, c); "any": unchanged
Samples = Literal["image", "series", "any"]


class ModelFunction(Protocol):
    """A model: takes the shape of a sample, the number of classes or channels, and options.

    The options are its keyword-only arguments: their types have limits, and the docstring describes
    them (`Args:`). `mpidl.registry.options_of` turns them into a section of settings.

    Attributes:
        samples: Kind of samples that the model takes.
        sizes: Presets of options: "tiny", which a laptop trains in seconds, and "real", as in
            papers.
    """

    samples: Samples
    sizes: Mapping[str, Mapping[str, Any]]

    def __call__(self, input_shape: Shape, outputs: int, /, **options: Any) -> list[Layer]:
        """The layers."""


def model(
    *, samples: Samples, tiny: Mapping[str, Any], real: Mapping[str, Any] | None = None
) -> Callable[[Callable[..., list[Layer]]], ModelFunction]:
    """Decorate a function that returns the layers of a model.

    Args:
        samples: Kind of samples that the model takes.
        tiny: Options of the tiny preset.
        real: Options of the real preset; by default the defaults.
    """

    def describe(function: Callable[..., list[Layer]]) -> ModelFunction:
        described = cast(ModelFunction, function)
        described.samples = samples
        described.sizes = {"tiny": tiny, "real": real or {}}
        return described

    return describe
