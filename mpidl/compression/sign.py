"""One bit an element with a scale per block (1-bit SGD: Seide et al., 2014)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.backend import ops_for
from mpidl.compression.quantized import Quantized


class Sign(Quantized):
    """1/25 of the bytes; needs error feedback, and a lower learning rate.

    A packet is its scales, then its bits.
    """

    bits = 1
    block = 128

    def pack(self, x: NDArray[Any], packet: NDArray[Any], seed: int) -> None:
        """Signs, and the mean magnitude of each block."""
        cut = len(x) // self.block * 4
        ops_for(x).sign_pack(x, self.block, packet[:cut].view(np.float32), packet[cut:])

    def unpack(self, packet: NDArray[Any], y: NDArray[Any], sign: int = 0) -> None:
        """Plus or minus the scale."""
        cut = len(y) // self.block * 4
        ops_for(y).sign_unpack(packet[:cut].view(np.float32), packet[cut:], self.block, y, sign)
