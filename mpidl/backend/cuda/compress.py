"""Packing of gradients on a GPU: only packets come to the host."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.backend.array import Array
from mpidl.backend.contract.compress import CompressOps, HostArray
from mpidl.backend.plain.compress import topk_pack, topk_pairs

BINS = 1 << 16  # classes of magnitudes


class DeviceCompressOps(CompressOps):
    """CompressOps for device arrays; packets, indices and their values are host arrays."""

    @abstractmethod
    def to_device(self, host: NDArray[Any]) -> Array: ...

    @abstractmethod
    def to_host(self, array: Array) -> NDArray[Any]: ...

    def _pack(self, kernel: Callable[[Array, Array], None], *packet: HostArray) -> None:
        scales, codes = (self.xp.empty(part.shape, part.dtype) for part in packet)
        kernel(scales, codes)
        for part, device in zip(packet, (scales, codes), strict=True):
            part[...] = self.to_host(device)

    def _unpack(self, *packet: HostArray) -> tuple[Array, ...]:
        return tuple(self.to_device(part) for part in packet)

    def topk(self, x: Array, k: int) -> tuple[HostArray, HostArray]:
        """By a histogram of magnitudes and a second pass that collects."""
        counts = self.xp.zeros(BINS, np.int64)
        self.launch("topk_count", x, counts, x.size, BINS)
        reaching = np.cumsum(self.to_host(counts)[::-1])[::-1]  # elements of each class and above
        least = int(np.flatnonzero(reaching >= k)[-1])
        room = int(reaching[least])
        index, found = self.xp.empty(room, np.int64), self.xp.zeros(1, np.int64)
        self.launch("topk_select", x, index, found, x.size, room, least)
        ordered = np.sort(self.to_host(index))
        values = self.to_host(x[self.to_device(ordered)])
        magnitudes = np.abs(values).view(np.uint32) >> 15
        surplus = np.flatnonzero(magnitudes == least)[k - int((magnitudes > least).sum()) :]
        return np.delete(ordered, surplus).astype(np.int32), np.delete(values, surplus)

    def topk_feedback(
        self, x: Array, residual: Array, k: int, hint: HostArray
    ) -> tuple[HostArray, HostArray]:
        self.add_and_keep(x, residual)
        return self.topk(x, k)

    def topk_pack(self, index: HostArray, value: HostArray, packet: HostArray) -> None:
        topk_pack(index, value, packet, index.size, packet.shape[1])

    def topk_unpack(self, packet: HostArray, y: Array, sign: int = 1) -> bool:
        index, value, finite = topk_pairs(packet, y.size)
        pairs = self.to_device(index), self.to_device(value)
        self.launch("scatter_add", *pairs, y, index.size, y.size, sign)
        return finite

    def half_pack(self, x: Array, out: HostArray) -> None:
        with np.errstate(over="ignore"):
            out[...] = self.to_host(x.astype(out.dtype))

    def half_unpack(self, half: HostArray, y: Array, sign: int = 0) -> None:
        values = self.to_device(half).astype(np.float32)
        if sign:
            y += sign * values
        else:
            y[...] = values
