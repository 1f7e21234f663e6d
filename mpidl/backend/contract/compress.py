"""Packing of gradients for compressed exchange.

Full-size arrays (n,) are float32 on the backend; packets, indices and their values are host arrays,
so that on a GPU only they travel to the host. A backend gives the same packets as another, bit by
bit, except that plain NumPy draws other random numbers and breaks ties in another way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mpidl.backend.array import Array
from mpidl.backend.contract.base import Launcher

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
STEP_LIMIT = 1 << 16  # indices of a top-k packet are steps of 16 bits
HostArray = NDArray[Any]


class CompressOps(Launcher):
    """Quantization, selection of the largest elements, 16-bit floats.

    On host arrays; a backend for a GPU overrides `_pack`, `_unpack` and what selects.
    """

    def int8_pack(self, x: Array, block: int, seed: int, scales: HostArray, q: HostArray) -> None:
        """x -> scales (blocks,) float32 and q (n,) int8, stochastically rounded.

        A block that is not finite gets the scale NaN.
        """
        self._pack(
            lambda s, codes: self.launch(
                "int8_pack", x, s, codes, x.size, block, scales.size, seed & 0xFFFFFFFF
            ),
            scales,
            q.view(np.uint8),
        )

    def int8_unpack(
        self, scales: HostArray, q: HostArray, block: int, y: Array, sign: int = 0
    ) -> None:
        """y = q * scale of its block, or y += sign * that where sign is not 0."""
        given = self._unpack(scales, q.view(np.uint8))
        self.launch("int8_unpack", *given, y, y.size, block, scales.size, sign)

    def sign_pack(self, x: Array, block: int, scales: HostArray, bits: HostArray) -> None:
        """x -> scales (blocks,) float32, mean |x|, and bits (n / 8,) uint8.

        A bit is 1 where x is not negative, lowest bit first.
        """
        self._pack(
            lambda s, codes: self.launch(
                "sign_pack", x, s, codes, x.size, block, scales.size, bits.size
            ),
            scales,
            bits,
        )

    def sign_unpack(
        self, scales: HostArray, bits: HostArray, block: int, y: Array, sign: int = 0
    ) -> None:
        """y = plus or minus the scale of its block, or y += sign * that where sign is not 0."""
        given = self._unpack(scales, bits)
        self.launch("sign_unpack", *given, y, y.size, block, scales.size, bits.size, sign)

    def add_and_keep(self, values: Array, residual: Array) -> None:
        """values += residual; residual = values."""
        self.launch("add_and_keep", values, residual, values.size)

    def topk(self, x: Array, k: int) -> tuple[HostArray, HostArray]:
        """The k elements of the largest magnitude.

        Magnitudes are told apart by the upper 16 of their 31 bits; within the last such class the
        first ones are taken. A NaN counts as largest.

        Returns:
            Indices (k,) int32, ascending, and values (k,) float32.
        """
        index, value = np.empty(k, np.int32), np.empty(k, np.float32)
        self.launch("topk", x, index, value, x.size, k)
        return index, value

    def topk_feedback(
        self, x: Array, residual: Array, k: int, hint: HostArray
    ) -> tuple[HostArray, HostArray]:
        """x += residual; residual = x; then as `topk`.

        Args:
            x: (n,).
            residual: (n,).
            k: How many to select.
            hint: (1,) uint32, kept from call to call, 0 at first; it saves passes.
        """
        index, value = np.empty(k, np.int32), np.empty(k, np.float32)
        self.launch("topk_feedback", x, residual, hint, index, value, x.size, k)
        return index, value

    def topk_pack(self, index: HostArray, value: HostArray, packet: HostArray) -> None:
        """Indices (k,), ascending, and values into packet (2, room) uint16.

        The packet holds steps from index to index, less one, and bfloat16 values. A step too long
        for 16 bits goes over stops of value zero on the way; the room that is left is zero.
        """
        self.launch("topk_pack", index, value, packet, index.size, packet.shape[1])

    def topk_unpack(self, packet: HostArray, y: Array, sign: int = 1) -> bool:
        """y[index] += sign * value for all of a packet (2, room).

        Returns:
            Whether all values are finite.
        """
        finite = np.empty(1, np.uint8)
        self.launch("topk_unpack", packet, y, finite, packet.shape[1], y.size, sign)
        return bool(finite[0])

    def half_pack(self, x: Array, out: HostArray) -> None:
        """out (n,) float16 or bfloat16 = x, rounded; beyond the range of float16: infinity."""
        self.launch("half_pack", x, out.view(np.uint16), x.size, int(out.dtype == BFLOAT16))

    def half_unpack(self, half: HostArray, y: Array, sign: int = 0) -> None:
        """y = half (n,), float16 or bfloat16, or y += sign * half where sign is not 0."""
        is_bfloat16 = int(half.dtype == BFLOAT16)
        self.launch("half_unpack", half.view(np.uint16), y, y.size, is_bfloat16, sign)

    def _pack(self, kernel: Callable[[Array, Array], None], *packet: HostArray) -> None:
        """Run a kernel that writes the two parts of a packet."""
        kernel(*packet)

    def _unpack(self, *packet: HostArray) -> tuple[Array, ...]:
        """The parts of a packet where kernels can read them."""
        return packet
