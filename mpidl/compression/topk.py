"""Top-k: only the elements of the largest magnitude travel, as (index, value) pairs."""

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
from mpidl.compression.compressor import Compressor, Layout
from mpidl.compression.error_feedback import Residuals, drop_nonfinite, take_arrays
from mpidl.optim import RunState


class TopK(Compressor):
    """Sparse gradients (Aji and Heafield, 2017; Lin et al., 2018); needs error feedback.

    Indices travel as 16-bit differences from one to the next, values as bfloat16: 4 bytes for a
    pair.
    """

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
        self.residuals = Residuals("residual")
        self._hints: dict[str, NDArray[Any]] = {}  # of the threshold, by bucket

    def reduce(self, values: NDArray[Any], group: Group, key: str, layout: Layout = ()) -> None:
        """All-gather of every rank's pairs: (P - 1) packets sent per rank.

        A bucket beyond the reach of 32-bit indices goes in parts.
        """
        if values.size > transport.MOST:
            for number, (start, stop) in enumerate(segments((0, values.size), transport.MOST)):
                self.reduce(values[start:stop], group, f"{key}, part {number}")
            return
        index, value = self._choose(values, key)
        room = len(index) + values.size // STEP_LIMIT + 1
        packets = np.empty((group.size, 2, room), np.uint16)
        ops_for(index).topk_pack(index, value, packets[group.rank])
        if self.options.error_feedback:
            self._subtract_sent(self.residuals.of(key, values.shape, values), packets[group.rank])
        all_gather(packets.reshape(-1), comm=group, algorithm="ring", name=key)
        self.sent += (group.size - 1) * packets[0].nbytes
        values[...] = 0
        for packet in packets:
            ops_for(values).topk_unpack(packet, values)

    def _choose(self, values: NDArray[Any], key: str) -> tuple[NDArray[Any], NDArray[Any]]:
        k = max(1, min(values.size, round(values.size * self.options.ratio)))
        if not self.options.error_feedback:
            return ops_for(values).topk(values, k)
        residual = self.residuals.of(key, values.shape, values)
        hint = self._hints.setdefault(key, np.zeros(1, np.uint32))
        return ops_for(values).topk_feedback(values, residual, k, hint)

    def _subtract_sent(self, residual: NDArray[Any], packet: NDArray[Any]) -> None:
        """What was sent, as it was rounded, is no longer left out."""
        if not ops_for(residual).topk_unpack(packet, residual, -1):
            drop_nonfinite(residual)

    def state(self) -> RunState:
        """Residuals and hints."""
        state = RunState(own={f"hint:{key}": hint.copy() for key, hint in self._hints.items()})
        self.residuals.save(state)
        return state

    def load_state(self, state: RunState) -> None:
        """Go on from what `state` returned."""
        if self.options.error_feedback:
            self.residuals.load(state)
        self._hints = take_arrays(state, "hint")
