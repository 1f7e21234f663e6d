"""Products with int8 weights: activations are quantized as they come, sums are exact integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.backend.array import Array
from mpidl.backend.contract.base import Launcher
from mpidl.backend.contract.conv import ConvGeometry
from mpidl.errors import ShapeError

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
        runs: Parts of the inputs that are padded each, see `pack_int8`.
    """

    panels: NDArray[np.int8]
    base: NDArray[np.int32]
    scales: NDArray[np.float32]
    k: int
    cols: int
    runs: int = 1


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


def pack_int8(numbers: NDArray[np.int8], scales: NDArray[np.float32], runs: int = 1) -> Int8Weights:
    """Lay out a quantized matrix.

    Args:
        numbers: (k, cols), from -127 to 127.
        scales: (cols).
        runs: Parts of equal size of the k inputs, each of which lies in one piece in memory: 1 for
            a matrix, `ConvGeometry.runs` for a convolution. Each is padded to whole groups.
    """
    k, cols = numbers.shape
    run, panels = k // runs, -(-cols // COLUMNS)
    each = -(-run // GROUP)
    whole = np.zeros((runs, each * GROUP, panels * COLUMNS), np.int8)
    whole[:, :run, :cols] = numbers.reshape(runs, run, cols)
    split = whole.reshape(runs * each, GROUP, panels, COLUMNS).transpose(2, 0, 3, 1)
    padded = np.zeros(panels * COLUMNS, np.float32)
    padded[:cols] = scales
    base = (-128 * whole.sum(axis=(0, 1), dtype=np.int64)).astype(np.int32)
    return Int8Weights(np.ascontiguousarray(split), base, padded, k, cols, runs)


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
        pool: int = 1,
    ) -> None:
        """out = act(x convolved with w + b), with one scale for each sample of x.

        Args:
            x: float32 (n, *size, ci).
            w: (taps * ci, co), packed for `g.runs`; one group of channels.
            b: float32 (co).
            out: float32 (n, *out size, co).
            g: The sizes.
            relu: ReLU behind it.
            pool: Of images: out is the maximum of each window of pool x pool pixels of that, and
                has pool times fewer along both axes; incomplete windows are dropped.

        Raises:
            ShapeError: The weights were packed for another convolution.
        """
        if (w.k, w.runs) != (g.taps * g.in_channels, g.runs) or (pool > 1 and g.out_size[0] > 1):
            raise ShapeError(
                f"{w.k} inputs in {w.runs} runs are not those of this convolution",
                where="int8_conv",
                remedy="pack the weights with runs=g.runs; pool images only",
            )
        depth, height, width = g.out_size
        outs = depth * (height // pool) * (width // pool)
        sizes = (g.record(len(x)), *w.panels.shape[:2], pool, outs, int(relu))
        self.launch("int8_conv", x, w.panels, w.base, w.scales, b, out, *sizes)
