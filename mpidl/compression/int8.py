"""int8 with a scale per block and stochastic rounding (QSGD: Alistarh et al., 2017)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.backend import ops_for
from mpidl.compression.quantized import Quantized


class Int8(Quantized):
    """A quarter of the bytes; unbiased. A packet is its scales, then its bytes."""

    bits = 8

    def pack(self, x: NDArray[Any], packet: NDArray[Any], seed: int) -> None:
        """Round stochastically to multiples of the block's scale."""
        cut = len(x) // self.block * 4
        ops_for(x).int8_pack(
            x, self.block, seed, packet[:cut].view(np.float32), packet[cut:].view(np.int8)
        )

    def unpack(self, packet: NDArray[Any], y: NDArray[Any], sign: int = 0) -> None:
        """Bytes times scales."""
        cut = len(y) // self.block * 4
        ops_for(y).int8_unpack(
            packet[:cut].view(np.float32), packet[cut:].view(np.int8), self.block, y, sign
        )
