"""Gradients as 16-bit floats: half the bytes.

The exchange of `mpidl.compression.quantized` with packets of rounded values: the owner of a part
adds in float32, and keeps what the rounding of the sum leaves out for the next step.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mpidl.backend import ops_for
from mpidl.collectives import Group
from mpidl.collectives.engine.reduction import BFLOAT16, FLOAT16
from mpidl.collectives.safety import checks
from mpidl.compression.compressor import Layout
from mpidl.compression.error_feedback import drop_nonfinite
from mpidl.compression.quantized import Quantized


class Float16(Quantized):
    """IEEE binary16: 11 bits of precision, up to 65504."""

    bits = 16
    block = 32
    dtype: ClassVar[np.dtype[Any]] = FLOAT16

    def reduce(self, values: NDArray[Any], group: Group, key: str, layout: Layout = ()) -> None:
        """Two exchanges of rounded values: 2 (P - 1) / P of half the size sent per rank.

        Raises:
            CollectiveError: The sum is beyond the largest float16; on every rank.
        """
        checked = self.dtype == FLOAT16 and values.size
        peak = float(max(values.max(), -values.min())) if checked else 0.0
        super().reduce(values, group, key, layout)
        if checked:
            checks.refuse_overflowed(values, peak, "sum", group, key)

    def packet_bytes(self, count: int) -> int:
        """Two bytes for each element; no scales."""
        return 2 * count

    def pack(self, x: NDArray[Any], packet: NDArray[Any], seed: int) -> None:
        """Round to nearest."""
        ops_for(x).half_pack(x, packet.view(self.dtype))

    def unpack(self, packet: NDArray[Any], y: NDArray[Any], sign: int = 0) -> None:
        """Widen."""
        ops_for(y).half_unpack(packet.view(self.dtype), y, sign)

    def _drop_nonfinite(self, packet: NDArray[Any], residual: NDArray[Any]) -> None:
        drop_nonfinite(residual)


class BFloat16(Float16):
    """bfloat16: 8 bits of precision, the range of float32."""

    dtype = BFLOAT16
