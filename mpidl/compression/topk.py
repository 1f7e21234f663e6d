"""Top-k: only the elements of the largest magnitude travel, as (index, value) pairs (Aji and Heafield, 2017; Lin et al., 2018).

Indices as steps from one to the next in 16 bits, values as bfloat16: 4 bytes for each of them. Needs error feedback.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from mpidl.backend import ops_for
from mpidl.backend.contract.compress import STEP_LIMIT
from mpidl.collectives import Group, all_gather
from mpidl.collectives.schedule import segments
from mpidl.comm import transport
from mpidl.compression.compressor import Compressor, Layout, fitting, take_all, to_host
from mpidl.optim import RunState


class TopK(Compressor):
    """ratio: the share of elements that travels, at least one of a bucket; feedback: keep the rest for the next time."""

    class Options(Compressor.Options, frozen=True):
        """Options of topk.

        Attributes:
            ratio: Share of the elements that travels, at least one of a bucket.
            error_feedback: Add what compression leaves out of a step to the next one.
        """

        ratio: Annotated[float, Meta(gt=0, le=1)] = 0.01

    options: Options

    def __init__(self, options: Options | None = None, *, seed: int = 0) -> None:
        super().__init__(options, seed=seed)
        self.ratio = self.options.ratio
        self.feedback = self.options.error_feedback
        self._residuals: dict[str, NDArray[Any]] = {}
        self._hints: dict[str, NDArray[Any]] = {}  # of the threshold

    def reduce(self, values: NDArray[Any], group: Group, key: str, layout: Layout = ()) -> None:
        """All-gather of every rank's pairs: (P - 1) packets sent per rank. What 32-bit indices do not reach goes in parts."""
        if values.size > transport.MOST:
            for number, (start, stop) in enumerate(segments((0, values.size), transport.MOST)):
                self.reduce(values[start:stop], group, f"{key}, part {number}")
            return
        index, value = self._choose(values, key)
        room = len(index) + values.size // STEP_LIMIT + 1
        packets = np.empty((group.size, 2, room), np.uint16)
        ops_for(index).topk_pack(index, value, packets[group.rank])
        if self.feedback:
            self._leave(key, packets[group.rank])
        all_gather(packets.reshape(-1), comm=group, algorithm="ring", name=key)
        self.sent += (group.size - 1) * packets[0].nbytes
        values[...] = 0
        for packet in packets:
            ops_for(values).topk_unpack(packet, values)

    def _choose(self, values: NDArray[Any], key: str) -> tuple[NDArray[Any], NDArray[Any]]:
        k = max(1, min(values.size, round(values.size * self.ratio)))
        if not self.feedback:
            return ops_for(values).topk(values, k)
        residual = self._residuals[key] = fitting(self._residuals.get(key), values.shape, values)
        return ops_for(values).topk_feedback(
            values, residual, k, self._hints.setdefault(key, np.zeros(1, np.uint32))
        )

    def _leave(self, key: str, packet: NDArray[Any]) -> None:
        """What is sent, as it is rounded, is no longer owed; what is not finite never was."""
        residual = self._residuals[key]
        if not ops_for(residual).topk_unpack(packet, residual, -1):
            residual[~np.isfinite(residual)] = 0

    def state(self) -> RunState:
        """Residuals and hints."""
        return RunState(own=to_host(self._residuals, "residual") | to_host(self._hints, "hint"))

    def load_state(self, state: RunState) -> None:
        """Go on from what `state` returned."""
        if self.feedback:
            self._residuals = take_all(state, "residual")
        self._hints = take_all(state, "hint")
