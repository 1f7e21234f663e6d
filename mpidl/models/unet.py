"""U-Net."""

from __future__ import annotations

from collections.abc import Sequence

from mpidl.nn import Concat, Conv2D, ConvTranspose2D, GroupNorm, Identity, Layer, MaxPool2D
from mpidl.nn import Sequential as Seq


def unet(
    input_shape: tuple[int, ...],
    classes: int,
    *,
    channels: Sequence[int] = (64, 128, 256, 512),
    groups: int = 8,
) -> list[Layer]:
    """Fields (h, w, c) to fields (h, w, classes) (Ronneberger et al., 2015), with group norm; each level halves the resolution.

    Needs h and w that 2^(levels - 1) divides. Trained as a regression, or with cross-entropy for every pixel.
    """
    step = 1 << (len(channels) - 1)
    if input_shape[0] % step or input_shape[1] % step:
        raise ValueError(
            f"{len(channels)} levels need a height and width that {step} divides, not {input_shape[:2]}"
        )

    def twice(count: int) -> list[Layer]:
        return [
            layer
            for _ in range(2)
            for layer in (Conv2D(count, 3, bias=False), GroupNorm(groups, relu=True))
        ]

    inner: list[Layer] = twice(channels[-1])
    for here in reversed(channels[:-1]):
        inner = [
            *twice(here),
            Concat([Identity(), Seq([MaxPool2D(2), *inner, ConvTranspose2D(here)])]),
            *twice(here),
        ]
    return [*inner, Conv2D(classes, 1)]
