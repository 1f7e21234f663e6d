"""Top-k: only the elements of the largest magnitude travel, as (index, value) pairs (Aji and Heafield, 2017; Lin et al., 2018).

Indices as steps from one to the next in 16 bits, values as bfloat16: 4 bytes for each of them. Needs error feedback.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.collectives import Group, all_gather
from mpidl.collectives.combine import BFLOAT16
from mpidl.compression import kernels
from mpidl.compression.compressor import Compressor, Layout

REACH = 1 << 16  # a step of 16 bits


class TopK(Compressor):
    """ratio: the share of elements that travels, at least one of a bucket; feedback: keep the rest for the next time."""

    def __init__(self, ratio: float = 0.01, seed: int = 0, feedback: bool = True) -> None:
        super().__init__()
        if not 0 < ratio <= 1:
            raise TypeError(f"ratio is {ratio}, but must be above 0 and at most 1")
        self.ratio, self.feedback = ratio, feedback
        self._kept: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}  # residual and hint of each bucket

    def reduce(self, values: NDArray[Any], group: Group, key: str, layout: Layout = ()) -> None:
        """All-gather of every rank's pairs: (P - 1) packets sent per rank."""
        index, value = self._choose(values, key)
        k = len(index)
        room = k + values.size // REACH + 1
        packets = np.zeros((group.size, 2, room), np.uint16)
        _encode(index, value, packets[group.rank])
        all_gather(packets.reshape(-1), comm=group, algorithm="ring", name=key)
        self.sent += (group.size - 1) * packets[0].nbytes
        values[...] = 0
        for rank, packet in enumerate(packets):
            where, what = _decode(packet)
            kernels.scatter_add(where, what, values)
            if rank == group.rank and self.feedback:
                self._leave(key, where, what)

    def _choose(self, values: NDArray[Any], key: str) -> tuple[NDArray[Any], NDArray[Any]]:
        k = max(1, min(values.size, round(values.size * self.ratio)))
        if not self.feedback:
            return kernels.topk(values, k)
        kept = self._kept.get(key)
        if kept is None or kept[0].size != values.size:
            kept = self._kept[key] = (np.zeros_like(values), np.zeros(1, np.uint32))
        return kernels.topk_feedback(values, kept[0], k, kept[1])

    def _leave(self, key: str, where: NDArray[Any], what: NDArray[Any]) -> None:
        """What was sent, as it was rounded, is no longer owed; what is not finite never was."""
        residual = self._kept[key][0]
        kernels.scatter_add(where, what, residual, -1)
        if not np.isfinite(what).all():
            residual[~np.isfinite(residual)] = 0


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
