"""Fourier neural operator."""

from __future__ import annotations

from mpidl.errors import ShapeError
from mpidl.models.base import model
from mpidl.nn import Activation, Conv1D, Conv2D, Layer, Residual, Sequential, SpectralConv
from mpidl.options import Positive


@model(samples="any", tiny={"width": 16, "modes": 6, "depth": 3})
def fno(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    width: Positive = 64,
    modes: Positive = 16,
    depth: Positive = 4,
) -> list[Layer]:
    """Fourier neural operator (Li et al., 2021) on fields (size, c) or (h, w, c).

    Each block adds a spectral and a pointwise convolution; pointwise layers lift the input to the
    channels of the blocks and project the result to the outputs.

    Args:
        width: Channels of the blocks.
        modes: Fourier modes kept per axis; at most half of its size.
        depth: Number of blocks.

    Raises:
        ShapeError: Samples are no such fields.
    """
    if len(input_shape) not in (2, 3):
        raise ShapeError(
            f"takes fields (size, channels) or (height, width, channels), but samples have the "
            f"shape {input_shape}",
            where="model.name = 'fno'",
            remedy="choose another model: mlp takes any samples",
        )
    point = Conv1D if len(input_shape) == 2 else Conv2D

    def block(*, last: bool) -> Layer:
        both = Residual(SpectralConv(width, modes), point(width, 1))
        return both if last else Sequential([both, Activation("gelu")])

    blocks = [block(last=index == depth - 1) for index in range(depth)]
    return [point(width, 1), *blocks, point(2 * width, 1), Activation("gelu"), point(outputs, 1)]
