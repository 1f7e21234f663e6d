"""int8 with a scale per block and stochastic rounding (QSGD: Alistarh et al., 2017), and one bit with a scale (1-bit SGD: Seide
et al., 2014), as a reduce-scatter and an all-gather of packets (1-bit Adam: Tang et al., 2021).

Every rank sends each other one its part, packed; adds what it gets in float32; and packs the sum for all. The owner of a part
keeps what the second packing leaves out for the next time. Error feedback for the first packing is built in: it works part by
part, while the part before it travels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.backend import ops_for
from mpidl.collectives import Group, run_rounds
from mpidl.collectives.algorithms import ring
from mpidl.collectives.algorithms.pairwise import all_to_all
from mpidl.collectives.schedule import NOTHING, Exchange, Round
from mpidl.comm.transport import array_module
from mpidl.compression.compressor import Compressor, Layout, fitting, take_all, to_host
from mpidl.optim import RunState

BLOCK = 1024  # elements that share a scale
FLUSH = Exchange(0, NOTHING, 0, NOTHING, False)  # sends nothing, but completes what is under way


class Quantized(Compressor):
    """The exchange; what a packet is, is the business of the subclasses."""

    bits: int

    block = BLOCK

    def __init__(self, options: Compressor.Options | None = None, *, seed: int = 0) -> None:
        super().__init__(options, seed=seed)
        self.feedback = self.options.error_feedback
        self._calls = 0
        self._residuals: dict[str, NDArray[Any]] = {}  # left out by the first packing, (P, part)
        self._late: dict[
            str, NDArray[Any]
        ] = {}  # left out by the second packing, at the owner of a part
        self._held: dict[tuple[str, int], NDArray[Any]] = {}

    def packet(self, count: int) -> int:
        """Bytes of a packet of `count` elements, a multiple of the block."""
        return count // self.block * 4 + count * self.bits // 8

    @abstractmethod
    def pack(self, x: NDArray[Any], packet: NDArray[Any], seed: int) -> None:
        """x (count,) float32 into packet (bytes,) uint8."""

    @abstractmethod
    def unpack(self, packet: NDArray[Any], y: NDArray[Any], sign: int = 0) -> None:
        """packet (bytes,) uint8 into y (count,) float32, or onto it, `sign` times."""

    def reduce(self, values: NDArray[Any], group: Group, key: str, layout: Layout = ()) -> None:
        """Two exchanges of packets: 2 (P - 1) / P of the packed size sent per rank. Packing and unpacking go on meanwhile."""
        size = group.size
        each = -(-values.size // (size * self.block)) * self.block
        nbytes, self._calls = self.packet(each), self._calls + 1
        whole = values
        if values.size != size * each:
            whole = self._borrow("whole", size * each, np.float32, values)
            whole[: values.size] = values
            whole[values.size :] = 0
        parts = list(whole.reshape(size, each))
        both = self._borrow("both", 2 * size * nbytes, np.uint8)
        packets = list(both.reshape(2 * size, nbytes))  # to the ranks, then from the ranks
        late = self._kept(self._late, key, (each,), values)
        owed = self._kept(self._residuals, key, (size, each), values)
        run_rounds(
            self._scatter(parts, packets, late, owed, group),
            both,
            comm=group,
            what="compressed reduce-scatter",
            name=key,
        )
        mine = packets[size + group.rank]
        self.pack(late, mine, self._seed(group.rank, size))
        self.unpack(mine, parts[group.rank])
        with np.errstate(invalid="ignore"):  # infinite sums, see _forget
            np.subtract(late, parts[group.rank], out=late)
        self._forget(mine, late)
        run_rounds(
            self._gather(parts, packets[size:], group),
            both[size * nbytes :],
            comm=group,
            what="compressed all-gather",
            name=key,
        )
        self.sent += 2 * (size - 1) * nbytes
        if whole is not values:
            values[...] = whole[: values.size]

    def _scatter(
        self, parts: list[Any], packets: list[Any], total: Any, owed: Any, group: Group
    ) -> Iterator[Exchange]:
        """All-to-all; each packet is made just before it leaves, and added to the total while the next one travels."""
        rank, size = group.rank, group.size
        total += parts[rank]  # this rank's own share need not be packed
        arrived = None  # index of a packet that has come
        for step in all_to_all(rank, size, len(packets) * len(packets[0])):
            assert isinstance(step, Exchange)
            self._pack_owed(
                parts[step.to], packets[step.to], owed[step.to], self._seed(rank, step.to)
            )
            yield step
            if arrived is not None:
                self.unpack(packets[arrived], total, 1)
            arrived = size + step.source
        yield FLUSH
        if arrived is not None:
            self.unpack(packets[arrived], total, 1)

    def _pack_owed(
        self, part: NDArray[Any], packet: NDArray[Any], owed: NDArray[Any], seed: int
    ) -> None:
        """Pack a part with what is owed from before; what the packet does not say is owed the next time."""
        if not self.feedback:
            self.pack(part, packet, seed)
            return
        ops_for(part).add_and_keep(part, owed)
        self.pack(part, packet, seed)
        self.unpack(packet, owed, -1)
        self._forget(packet, owed)

    def _forget(self, packet: NDArray[Any], owed: NDArray[Any]) -> None:
        """What is not finite is not owed."""
        if not np.isfinite(self.scales(packet)).all():
            owed[~np.isfinite(owed)] = 0

    def _kept(
        self, held: dict[str, NDArray[Any]], key: str, shape: tuple[int, ...], like: NDArray[Any]
    ) -> NDArray[Any]:
        kept: NDArray[Any] = fitting(held.get(key), shape, like)
        held[key] = kept
        return kept

    def _gather(self, parts: list[Any], packets: list[Any], group: Group) -> Iterator[Round]:
        """All-gather; each packet is unpacked while the next one travels."""
        rank, size, arrived = group.rank, group.size, None
        for number, step in enumerate(
            ring.all_gather(rank, size, size * len(packets[0]), len(packets[0]))
        ):
            yield step
            if arrived is not None:
                self.unpack(packets[arrived], parts[arrived])
            arrived = (rank - number - 1) % size
        yield FLUSH
        if arrived is not None:
            self.unpack(packets[arrived], parts[arrived])

    def state(self) -> RunState:
        """Both residuals, and the calls so far, which seed the noise of rounding."""
        first = self._residuals if self.feedback else {}
        state = RunState(own=to_host(first, "residual") | to_host(self._late, "owner"))
        state.set_numbers(calls=self._calls)
        return state

    def load_state(self, state: RunState) -> None:
        """Go on from what `state` returned."""
        self._calls = int(state.take_number("calls", self._calls))
        self._late = take_all(state, "owner")
        if self.feedback:
            self._residuals = take_all(state, "residual")

    def scales(self, packet: NDArray[Any]) -> NDArray[Any]:
        """The scales at the head of a packet, (blocks,) float32."""
        return packet[: len(packet) * 8 // (32 + self.bits * self.block) * 4].view(np.float32)

    def _seed(self, rank: int, part: int) -> int:
        return hash((self.seed, self._calls, rank, part)) & 0xFFFFFFFF

    def _borrow(self, name: str, count: int, dtype: Any, like: Any = None) -> NDArray[Any]:
        """Reused memory, by name and length; on the device of `like`."""
        held = self._held.get((name, count))
        if held is None:
            held = self._held[name, count] = array_module(like).empty(count, dtype)
        return held


class Int8(Quantized):
    """A quarter of the bytes; unbiased."""

    bits = 8

    def pack(self, x: NDArray[Any], packet: NDArray[Any], seed: int) -> None:
        """Scales, then bytes."""
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


class Sign(Quantized):
    """One bit and a share of a scale per element: 1/25 of the bytes; needs error feedback, and a lower learning rate."""

    bits = 1

    block = 128

    def pack(self, x: NDArray[Any], packet: NDArray[Any], seed: int) -> None:
        """Scales, then bits."""
        cut = len(x) // self.block * 4
        ops_for(x).sign_pack(x, self.block, packet[:cut].view(np.float32), packet[cut:])

    def unpack(self, packet: NDArray[Any], y: NDArray[Any], sign: int = 0) -> None:
        """Plus or minus the scale."""
        cut = len(y) // self.block * 4
        ops_for(y).sign_unpack(packet[:cut].view(np.float32), packet[cut:], self.block, y, sign)
