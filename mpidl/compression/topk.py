"""Top-k: only the elements of the largest magnitude travel, as (index, value) pairs (Aji and Heafield, 2017; Lin et al., 2018).

Indices as steps from one to the next in 16 bits, values as bfloat16: 4 bytes for each element that travels. Needs error feedback.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.collectives import Group, all_gather
from mpidl.collectives.combine import BFLOAT16
from mpidl.compression import kernels
from mpidl.compression.compressor import Compressor

REACH = 1 << 16  # a step of 16 bits


class TopK(Compressor):
    """ratio: the share of elements that travels, at least one of a bucket."""

    def __init__(self, ratio: float = 0.01, seed: int = 0) -> None:
        super().__init__()
        if not 0 < ratio <= 1:
            raise TypeError(f"ratio is {ratio}, but must be above 0 and at most 1")
        self.ratio = ratio

    def reduce(self, values: NDArray[Any], group: Group, key: str) -> None:
        """All-gather of every rank's pairs: (P - 1) packets sent per rank."""
        k = max(1, min(values.size, round(values.size * self.ratio)))
        index, value = kernels.topk(values, k)
        room = k + values.size // REACH + 1
        packets = np.zeros(group.size * 4 * room, np.uint8)
        own = packets[group.rank * 4 * room : (group.rank + 1) * 4 * room]
        _encode(index, value, own.view(np.uint16).reshape(2, room))
        all_gather(packets, comm=group, algorithm="ring", name=key)
        self.sent += (group.size - 1) * 4 * room
        values[...] = 0
        for rank in range(group.size):
            packet = packets[rank * 4 * room : (rank + 1) * 4 * room].view(np.uint16).reshape(2, room)
            where, what = _decode(packet)
            kernels.scatter_add(where, what, values)
            if rank == group.rank:
                self._own = (where, what)

    def own(self, values: NDArray[Any]) -> NDArray[Any]:
        """Zero but for what this rank sent."""
        sparse = np.zeros_like(values)
        kernels.scatter_add(*self._own, sparse)
        return sparse


def _encode(index: NDArray[Any], value: NDArray[Any], packet: NDArray[Any]) -> None:
    """Steps from one index to the next, and bfloat16 values, into packet (2, room) uint16.

    A step too long for 16 bits goes over stops of value zero on the way; room that is left is filled with steps of zero and
    values of zero.
    """
    steps = np.diff(index, prepend=-1) - 1
    extra = steps // REACH
    if extra.any():
        places = np.arange(len(index)) + np.cumsum(extra)
        packet[0, : places[-1] + 1] = REACH - 1
        packet[1] = 0
    else:
        places = np.arange(len(index))
    packet[0, places] = steps % REACH
    packet[1, places] = value.astype(BFLOAT16).view(np.uint16)


def _decode(packet: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Indices (m,) int32 and values (m,) float32 that are not zero."""
    where = np.cumsum(packet[0].astype(np.int32) + 1, dtype=np.int32) - 1
    what = packet[1].view(BFLOAT16).astype(np.float32)
    used = what != 0
    return np.ascontiguousarray(where[used]), np.ascontiguousarray(what[used])
