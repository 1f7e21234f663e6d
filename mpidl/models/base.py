"""What a ready-made model is: a function that returns layers, with what must be known of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, cast

from mpidl.nn import Layer

Shape = tuple[int, ...]
# What a sample is: a field (a, b) is a gray image (h, w), or a series (t, c); "any": as it comes
Samples = Literal["image", "series", "any"]


class ModelFunction(Protocol):
    """A model: called with the shape of a sample, the outputs (classes or channels) and options.

    Its options are its keyword-only arguments, whose types carry their limits and whose meaning its
    docstring tells (`Args:`); `mpidl.registry.options_of` makes a section of settings of them.

    Attributes:
        samples: What a sample is.
        sizes: Options by the name of a size: "tiny", what a laptop trains in seconds, and "real",
            what papers use.
    """

    samples: Samples
    sizes: Mapping[str, Mapping[str, Any]]

    def __call__(self, input_shape: Shape, outputs: int, /, **options: Any) -> list[Layer]:
        """The layers."""


def model(
    *, samples: Samples, tiny: Mapping[str, Any], real: Mapping[str, Any] | None = None
) -> Callable[[Callable[..., list[Layer]]], ModelFunction]:
    """Decorator of a function that returns the layers of a model.

    Args:
        samples: What a sample is.
        tiny: Options of the tiny size.
        real: Options of the real size, where they are not the defaults.
    """

    def describe(function: Callable[..., list[Layer]]) -> ModelFunction:
        described = cast(ModelFunction, function)
        described.samples = samples
        described.sizes = {"tiny": tiny, "real": real or {}}
        return described

    return describe
