"""Fourier neural operator."""

from __future__ import annotations

from mpidl.nn import Activation, Conv1D, Conv2D, Layer, Residual, Sequential, SpectralConv


def fno(
    input_shape: tuple[int, ...], classes: int, *, width: int = 64, modes: int = 16, depth: int = 4
) -> list[Layer]:
    """Fields (size, c) or (h, w, c) to fields of `classes` channels on the same grid (Li et al., 2021).

    depth blocks: spectral convolution plus a pointwise one, GELU; in front and behind pointwise networks.
    """
    point = Conv1D if len(input_shape) == 2 else Conv2D

    def block(*, last: bool) -> Layer:
        both = Residual(SpectralConv(width, modes), point(width, 1))
        return both if last else Sequential([both, Activation("gelu")])

    blocks = [block(last=index == depth - 1) for index in range(depth)]
    return [point(width, 1), *blocks, point(2 * width, 1), Activation("gelu"), point(classes, 1)]
