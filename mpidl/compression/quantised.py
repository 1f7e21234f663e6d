"""int8 with a scale per block and stochastic rounding (QSGD: Alistarh et al., 2017), and one bit with a scale (1-bit SGD: Seide
et al., 2014), as a reduce-scatter and an all-gather of packets (1-bit Adam: Tang et al., 2021).

Every rank sends each other one its part, packed; adds what it gets in float32; and packs the sum for all. The owner of a part
keeps what the second packing leaves out for the next time.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.collectives import Group, all_gather, all_to_all
from mpidl.compression import kernels
from mpidl.compression.compressor import Compressor

BLOCK = 512  # elements that share a scale


class Quantised(Compressor):
    """The exchange; what a packet is, is the business of the subclasses."""

    bits: int

    def __init__(self, seed: int = 0, block: int = BLOCK) -> None:
        super().__init__()
        self.seed, self.block, self._calls = seed, block, 0
        self._late: dict[str, NDArray[Any]] = {}  # left out by the second packing, at the owner of a part
        self._held: dict[tuple[str, int], NDArray[Any]] = {}

    def packet(self, count: int) -> int:
        """Bytes of a packet of `count` elements, a multiple of the block."""
        return count // self.block * 4 + count * self.bits // 8

    @abstractmethod
    def pack(self, x: NDArray[Any], packet: NDArray[Any], seed: int) -> None:
        """x (count,) float32 into packet (bytes,) uint8."""

    @abstractmethod
    def unpack(self, packet: NDArray[Any], y: NDArray[Any], *, add: bool) -> None:
        """packet (bytes,) uint8 into, or onto, y (count,) float32."""

    def reduce(self, values: NDArray[Any], group: Group, key: str) -> None:
        """Two exchanges of packets: 2 (P - 1) / P of the packed size sent per rank."""
        size = group.size
        each = -(-values.size // (size * self.block)) * self.block
        nbytes, self._calls = self.packet(each), self._calls + 1
        padded = self._borrow("padded", size * each, np.float32)
        padded[: values.size] = values
        padded[values.size :] = 0
        out, back = self._borrow("out", size * nbytes, np.uint8), self._borrow("back", size * nbytes, np.uint8)
        for rank in range(size):
            self.pack(
                padded[rank * each : (rank + 1) * each], out[rank * nbytes : (rank + 1) * nbytes], self._seed(group.rank, rank)
            )
        self._packets, self._each = out, each
        all_to_all(out, back, comm=group, name=key)
        total = self._late.get(key)
        if total is None or total.size != each:
            total = self._late[key] = np.zeros(each, np.float32)
        for rank in range(size):
            self.unpack(back[rank * nbytes : (rank + 1) * nbytes], total, add=True)
        mine = back[group.rank * nbytes : (group.rank + 1) * nbytes]
        self.pack(total, mine, self._seed(group.rank, size))
        all_gather(back, comm=group, algorithm="ring", name=key)
        self.sent += 2 * (size - 1) * nbytes
        for rank in range(size):
            self.unpack(back[rank * nbytes : (rank + 1) * nbytes], padded[rank * each : (rank + 1) * each], add=False)
        total -= padded[group.rank * each : (group.rank + 1) * each]
        if not np.isfinite(total.sum()):
            total[...] = 0
        values[...] = padded[: values.size]

    def own(self, values: NDArray[Any]) -> NDArray[Any]:
        """The first packets, unpacked."""
        padded, nbytes = self._borrow("padded", 0, np.float32), self.packet(self._each)
        for index in range(len(padded) // self._each):
            part = padded[index * self._each : (index + 1) * self._each]
            self.unpack(self._packets[index * nbytes : (index + 1) * nbytes], part, add=False)
        return padded[: values.size]

    def _seed(self, rank: int, part: int) -> int:
        return hash((self.seed, self._calls, rank, part)) & 0xFFFFFFFF

    def _borrow(self, name: str, count: int, dtype: Any) -> NDArray[Any]:
        """Reused memory by name; count 0: as it was."""
        if count == 0:
            return self._held[name, -1]
        held = self._held.get((name, count))
        if held is None:
            held = self._held[name, count] = np.empty(count, dtype)
        self._held[name, -1] = held
        return held


class Int8(Quantised):
    """A quarter of the bytes; unbiased."""

    bits = 8

    def pack(self, x: NDArray[Any], packet: NDArray[Any], seed: int) -> None:
        """Scales, then bytes."""
        cut = len(x) // self.block * 4
        kernels.int8_pack(x, self.block, seed, packet[:cut].view(np.float32), packet[cut:].view(np.int8))

    def unpack(self, packet: NDArray[Any], y: NDArray[Any], *, add: bool) -> None:
        """Bytes times scales."""
        cut = len(y) // self.block * 4
        kernels.int8_unpack(packet[:cut].view(np.float32), packet[cut:].view(np.int8), self.block, y, add=add)


class Sign(Quantised):
    """One bit and a share of a scale per element: 1/30 of the bytes; needs error feedback."""

    bits = 1

    def pack(self, x: NDArray[Any], packet: NDArray[Any], seed: int) -> None:
        """Scales, then bits."""
        cut = len(x) // self.block * 4
        kernels.sign_pack(x, self.block, packet[:cut].view(np.float32), packet[cut:])

    def unpack(self, packet: NDArray[Any], y: NDArray[Any], *, add: bool) -> None:
        """Plus or minus the scale."""
        cut = len(y) // self.block * 4
        kernels.sign_unpack(packet[:cut].view(np.float32), packet[cut:], self.block, y, add=add)
