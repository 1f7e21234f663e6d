"""Augmentation of a batch, from numbers that depend on (seed, epoch, sample) alone."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from mpidl.backend.array import Array
from mpidl.backend.contract.base import Launcher


class Drawn(NamedTuple):
    """What random numbers are drawn from, as kernels take it.

    Attributes:
        samples: (n,) int64, numbers of the samples in the data set, on the device.
        seed: Of the run.
        epoch: Number of the epoch.
    """

    samples: Array
    seed: int
    epoch: int


class AugmentOps(Launcher):
    """Passes over a batch of samples, each with its own random numbers."""

    def augment_gather(
        self, x: Array, out: Array, drawn: Drawn, g: Any, scale: float, shift: float, fill: float
    ) -> None:
        """out = x * scale + shift of parts of the samples, moved, mirrored and turned.

        Args:
            x: (n, d, h, w, c), of the dtype of out or uint8.
            out: (n, od, oh, ow, c), floating.
            drawn: Of the batch.
            g: A record `augment_geometry`: what may be drawn.
            scale: Factor.
            shift: Summand.
            fill: Value of `out` beyond an edge that is EDGE_FILL.
        """
        name = "augment_gather_u8" if x.dtype == np.uint8 else "augment_gather"
        self.launch(name, x, out, *drawn, g, scale, shift, fill)

    def augment_vectors(self, x: Array, vectors: Array, drawn: Drawn, g: Any, shift: float) -> None:
        """Turn vectors in x (n, od, oh, ow, c) as `augment_gather` turned the samples, in place.

        Args:
            x: Stores components u as u * scale + shift.
            vectors: (pairs, 2) int64, channels of the components along h and along w.
            drawn: Of the batch.
            g: As `augment_gather`.
            shift: See `x`.
        """
        samples, seed, epoch = drawn
        self.launch("augment_vectors", x, samples, vectors, len(vectors), seed, epoch, g, shift)

    def augment_cutout(self, x: Array, drawn: Drawn, size: int, chance: int) -> None:
        """Set a square of x (n, h, w, c) to 0 (DeVries and Taylor, 2017), in place.

        Args:
            x: The batch.
            drawn: Of the batch.
            size: Of the square; what lies beyond the edge is left out.
            chance: Probability times 2^32.
        """
        self.launch("augment_cutout", x, *drawn, *x.shape, size, chance)

    def augment_mixup(
        self, x: Array, other: Array, share: Array, table: Array, drawn: Drawn, chance: int
    ) -> None:
        """x = share * x + (1 - share) * other for each sample (Zhang et al., 2018), in place.

        Args:
            x: (n, ...).
            other: The same shape and dtype.
            share: (n,), of the dtype of sums; written: 1 where a sample is left as it is.
            table: (count,) int64, quantiles of the share times 2^30, at equal distances.
            drawn: Of the batch.
            chance: Probability times 2^32.
        """
        n = len(x)
        size = math.prod(x.shape[1:])
        self.launch("augment_mixup", x, other, share, table, *drawn, n, size, len(table), chance)

    def augment_cutmix(
        self, x: Array, other: Array, share: Array, table: Array, drawn: Drawn, chance: int
    ) -> None:
        """A box of each sample of x becomes that of `other` (Yun et al., 2019), in place.

        Args:
            x: (n, h, w, c).
            other: The same shape and dtype.
            share: (n,), of the dtype of sums; written: the part of the image that is left.
            table: (count,) int64, quantiles of the side of the box, as a part of the image's, times
                2^30, at equal distances.
            drawn: Of the batch.
            chance: Probability times 2^32.
        """
        self.launch("augment_cutmix", x, other, share, table, *drawn, *x.shape, len(table), chance)

    def augment_jitter(
        self, x: Array, drawn: Drawn, black: float, spreads: tuple[float, float, float]
    ) -> None:
        """Change brightness, contrast and, of 3 channels, saturation of images, in place.

        Args:
            x: (n, ..., c), normalized.
            drawn: Of the batch.
            black: What 0 is normalized to.
            spreads: Of brightness, contrast and saturation: factors are drawn evenly within 1 -
                spread and 1 + spread.
        """
        n, c = len(x), x.shape[-1]
        pixels = math.prod(x.shape[1:-1])
        self.launch("augment_jitter", x, *drawn, n, pixels, c, black, *spreads)

    def augment_noise(self, x: Array, drawn: Drawn, std: float) -> None:
        """Add independent normal numbers to x (n, ...), in place.

        Args:
            x: The batch; fewer than 2^33 elements a sample.
            drawn: Of the batch.
            std: Their standard deviation.
        """
        n = len(x)
        self.launch("augment_noise", x, *drawn, n, math.prod(x.shape[1:]), std)
