"""What mixup and cutmix have in common: samples and their targets are mixed with partners."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from mpidl.augment.base import CHANCE, Augmentation
from mpidl.backend import Array, Ops
from mpidl.backend.contract.augment import Drawn
from mpidl.options import Fraction, Section

Alpha = Annotated[float, Meta(gt=0, le=8)]
CELLS = 1 << 10  # of a table of quantiles
_STEPS = 1 << 16  # of the integral


class Mixing(Augmentation):
    """Mixes each sample with its partner, the next of its lane."""

    class Options(Section, frozen=True):
        """Options of mixing.

        Attributes:
            alpha: The share of a sample is drawn from Beta(alpha, alpha).
            probability: Of mixing a sample.
        """

        alpha: Alpha = 0.2
        probability: Fraction = 1.0

    options: Options

    @property
    def chance(self) -> int:
        """The probability, as kernels take it."""
        return round(self.options.probability * CHANCE)

    @property
    def one_class(self) -> bool:
        """Whether a target is one class."""
        return self.samples.targets == "classes" and self.samples.target_elements == 1

    def refuse_many_classes(self) -> None:
        """Refuse targets with several classes, which have no mean."""
        if self.samples.targets == "classes" and not self.one_class:
            raise self.error(
                f"mixes targets, but these are classes of the shape {self.samples.target_shape}"
            )

    @property
    @abstractmethod
    def quantiles(self) -> NDArray[np.int64]:
        """The table that the kernel draws from."""

    @abstractmethod
    def apply(
        self, ops: Ops, x: Array, other: Array, share: Array, table: Array, drawn: Drawn
    ) -> None:
        """Mix in place.

        Args:
            ops: The backend.
            x: (n, *shape), normalized.
            other: Of the partners.
            share: (n,), written: the part of each sample that is its own.
            table: The quantiles, on the device.
            drawn: Of the batch.
        """

    def mix_fields(self, ops: Ops, y: Array, other: Array, table: Array, drawn: Drawn) -> bool:
        """Mix targets that are fields in place, as `apply` does; False: they are mixed linearly."""
        return False


def mix_targets(ops: Ops, share: Array, own: Array, other: Array, out: Array) -> None:
    """Targets of mixed samples.

    Args:
        ops: The backend.
        share: (n,) of a sample's own target.
        own: (n, ...) real values; or one class for each sample, int64.
        other: The same of the partners.
        out: (n, ...) real values; or (n, classes), the shares of all classes.
    """
    count = len(share)
    if own.dtype.kind == "f":
        part = share.reshape(count, *[1] * (own.ndim - 1))
        out[...] = other + part * (own - other)
        return
    rows = ops.xp.arange(count)
    out[...] = 0
    out[rows, own.reshape(-1)] += share
    out[rows, other.reshape(-1)] += share * -1 + 1


def fixed(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Numbers in [0, 1] as kernels take them."""
    return np.asarray(np.rint(values * (1 << 30)), np.int64)


def beta_quantiles(alpha: float) -> NDArray[np.float64]:
    """Quantiles of Beta(alpha, alpha) at CELLS + 1 equal distances.

    Below 1/2 the density x^(alpha - 1) (1 - x)^(alpha - 1) dx is (1 - x)^(alpha - 1) dt / alpha
    with t = x^alpha: bounded, so that the trapezoidal rule works. It is symmetric around 1/2.
    """
    t = np.linspace(0, 0.5**alpha, _STEPS + 1)
    density = (1 - t ** (1 / alpha)) ** (alpha - 1)
    mass = np.r_[0, np.cumsum(density[1:] + density[:-1])]
    low = np.interp(np.linspace(0, 1, CELLS // 2 + 1), mass / mass[-1], t) ** (1 / alpha)
    return np.concatenate([low, 1 - low[-2::-1]])
