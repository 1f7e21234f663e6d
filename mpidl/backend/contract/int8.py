"""Products with int8 weights: activations are quantized as they come, sums are exact integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.backend.array import Array
from mpidl.backend.contract.base import Launcher
from mpidl.backend.contract.conv import ConvGeometry

COLUMNS, GROUP = 32, 4  # of a panel, in the order of kernels/cpu/int8.c
MOST_INPUTS = 1 << 16  # 255 * 127 times as many still fits a sum of 32 bits


@dataclass(frozen=True)
class Int8Weights:
    """A matrix (k, cols) as the kernels take it, padded with zeros to whole panels.

    Attributes:
        panels: int8 (panels, groups, 32, 4).
        base: int32 (panels * 32): -128 times the sums of the columns.
        scales: float32 (panels * 32): the value of one step in each column.
        k: Inputs.
        cols: Outputs.
    """

    panels: NDArray[np.int8]
    base: NDArray[np.int32]
    scales: NDArray[np.float32]
    k: int
    cols: int


def quantize_columns(w: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 with one scale for each column.

    Args:
        w: (k, cols), finite.

    Returns:
        Whole numbers from -127 to 127, (k, cols), and scales (cols) with w ~ numbers * scales.
    """
    peaks = np.abs(w).max(axis=0, initial=0)
    scales = (peaks / 127).astype(np.float32)
    steps = np.where(scales > 0, scales, 1)
    numbers = np.clip(np.rint(w / steps), -127, 127)
    return numbers.astype(np.int8), scales


def pack_int8(numbers: NDArray[np.int8], scales: NDArray[np.float32]) -> Int8Weights:
    """Lay out a quantized matrix.

    Args:
        numbers: (k, cols), from -127 to 127.
        scales: (cols).
    """
    k, cols = numbers.shape
    panels, groups = -(-cols // COLUMNS), -(-k // GROUP)
    whole = np.zeros((groups * GROUP, panels * COLUMNS), np.int8)
    whole[:k, :cols] = numbers
    split = whole.reshape(groups, GROUP, panels, COLUMNS).transpose(2, 0, 3, 1)
    padded = np.zeros(panels * COLUMNS, np.float32)
    padded[:cols] = scales
    base = (-128 * whole.sum(axis=0, dtype=np.int64)).astype(np.int32)
    return Int8Weights(np.ascontiguousarray(split), base, padded, k, cols)


class Int8Ops(Launcher):
    """Products with int8 weights, on the CPU and in float32 only."""

    def int8_dense(
        self, x: Array, w: Int8Weights, b: Array | None, out: Array, *, relu: bool = False
    ) -> None:
        """out = act(x @ w + b), with one scale for each row of x.

        Args:
            x: float32 (n, k).
            w: (k, cols).
            b: float32 (cols).
            out: float32 (n, cols).
            relu: ReLU behind it.
        """
        sizes = (len(x), w.cols, w.k, *w.panels.shape[:2])
        self.launch("int8_dense", x, w.panels, w.base, w.scales, b, out, *sizes, int(relu))

    def int8_conv(
        self,
        x: Array,
        w: Int8Weights,
        b: Array | None,
        out: Array,
        g: ConvGeometry,
        *,
        relu: bool = False,
    ) -> None:
        """out = act(x convolved with w + b), with one scale for each sample of x.

        Args:
            x: float32 (n, *size, ci).
            w: (taps * ci, co); one group of channels.
            b: float32 (co).
            out: float32 (n, *out size, co).
            g: The sizes.
            relu: ReLU behind it.
        """
        sizes = (g.record(len(x)), *w.panels.shape[:2], int(relu))
        self.launch("int8_conv", x, w.panels, w.base, w.scales, b, out, *sizes)
