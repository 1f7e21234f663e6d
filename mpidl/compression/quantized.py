"""The exchange of compressors that round every element: a reduce-scatter and an all-gather of
packets.

Every rank sends each other one its part, packed; adds what it gets in float32; and packs the sum
for all (1-bit Adam: Tang et al., 2021). What the first packing leaves out is a residual of the
sender, what the second one leaves out a residual of the owner of the part.
"""

from __future__ import annotations

import hashlib
import struct
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mpidl.backend import ops_for
from mpidl.collectives import Group, run_rounds
from mpidl.collectives.algorithms import ring
from mpidl.collectives.algorithms.pairwise import all_to_all
from mpidl.collectives.schedule import NOTHING, Exchange, Round
from mpidl.comm.transport import array_module
from mpidl.compression.compressor import Compressor, Layout
from mpidl.compression.error_feedback import Residuals, drop_nonfinite
from mpidl.optim import RunState

FLUSH = Exchange(0, NOTHING, 0, NOTHING, False)  # sends nothing, but completes what is under way

Parts = Sequence[NDArray[Any]]


class Quantized(Compressor):
    """Two-phase exchange; subclasses define the packet format.

    Attributes:
        bits: Of an element in a packet.
        block: Elements that share a scale.
    """

    bits: ClassVar[int]
    block: ClassVar[int] = 1024

    options: Compressor.Options

    def __init__(self, options: Compressor.Options | None = None, *, seed: int = 0) -> None:
        super().__init__(options, seed=seed)
        self.residuals = Residuals("residual")  # of this rank's parts, (P, part)
        self.owner_residuals = Residuals("owner")  # of the sum of its own part, (part,)
        self._calls = 0
        self._scratch: dict[tuple[str, int], NDArray[Any]] = {}

    def packet_bytes(self, count: int) -> int:
        """Bytes of a packet.

        Args:
            count: Elements in it, a multiple of the block.
        """
        return count // self.block * 4 + count * self.bits // 8

    @abstractmethod
    def pack(self, x: NDArray[Any], packet: NDArray[Any], seed: int) -> None:
        """Round a part.

        Args:
            x: (count,) float32.
            packet: (bytes,) uint8, filled.
            seed: Of stochastic rounding.
        """

    @abstractmethod
    def unpack(self, packet: NDArray[Any], y: NDArray[Any], sign: int = 0) -> None:
        """Widen a packet.

        Args:
            packet: (bytes,) uint8.
            y: (count,) float32.
            sign: 0: y becomes the packet's values; 1 or -1: they are added or subtracted.
        """

    def reduce(self, values: NDArray[Any], group: Group, key: str, layout: Layout = ()) -> None:
        """Two exchanges of packets: 2 (P - 1) / P of the packed size sent per rank.

        Parts are packed and unpacked while others travel.
        """
        size, self._calls = group.size, self._calls + 1
        each = -(-values.size // (size * self.block)) * self.block
        nbytes = self.packet_bytes(each)
        whole = self._padded(values, size * each)
        parts = list(whole.reshape(size, each))
        both = self._borrow("packets", 2 * size * nbytes, np.uint8)
        packets = list(both.reshape(2 * size, nbytes))  # to the ranks, then from the ranks
        total = self.owner_residuals.of(key, (each,), values)
        run_rounds(
            self._scatter(parts, packets, total, self._sender_residual(key, parts), group),
            both,
            comm=group,
            what="compressed reduce-scatter",
            name=key,
        )
        self._pack_total(total, packets[size + group.rank], parts[group.rank], group)
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

    def _padded(self, values: NDArray[Any], length: int) -> NDArray[Any]:
        """The bucket with zeros behind it, where its length is no multiple of the blocks."""
        if values.size == length:
            return values
        whole = self._borrow("whole", length, np.float32, values)
        whole[: values.size] = values
        whole[values.size :] = 0
        return whole

    def _sender_residual(self, key: str, parts: Parts) -> Parts | None:
        if not self.options.error_feedback:
            return None
        return list(self.residuals.of(key, (len(parts), parts[0].size), parts[0]))

    def _scatter(
        self,
        parts: Parts,
        packets: Parts,
        total: NDArray[Any],
        residuals: Parts | None,
        group: Group,
    ) -> Iterator[Exchange]:
        """All-to-all.

        Each packet is made just before it leaves, and added to the total while the next travels.
        """
        rank, size = group.rank, group.size
        total += parts[rank]  # this rank's own share need not be packed
        arrived = None  # index of a packet that has come
        for step in all_to_all(rank, size, len(packets) * len(packets[0])):
            assert isinstance(step, Exchange)
            residual = residuals[step.dest] if residuals is not None else None
            self._pack_part(
                parts[step.dest], packets[step.dest], residual, self._packet_seed(rank, step.dest)
            )
            yield step
            if arrived is not None:
                self.unpack(packets[arrived], total, 1)
            arrived = size + step.source
        yield FLUSH
        if arrived is not None:
            self.unpack(packets[arrived], total, 1)

    def _pack_part(
        self, part: NDArray[Any], packet: NDArray[Any], residual: NDArray[Any] | None, seed: int
    ) -> None:
        """Pack a part and what was left out before; what the packet lacks is the new residual."""
        if residual is None:
            self.pack(part, packet, seed)
            return
        ops_for(part).add_and_keep(part, residual)
        self.pack(part, packet, seed)
        self.unpack(packet, residual, -1)
        self._drop_nonfinite(packet, residual)

    def _pack_total(
        self, total: NDArray[Any], packet: NDArray[Any], part: NDArray[Any], group: Group
    ) -> None:
        """Pack the sum of this rank's part; `total` keeps what the packet lacks."""
        self.pack(total, packet, self._packet_seed(group.rank, group.size))
        self.unpack(packet, part)
        with np.errstate(invalid="ignore"):  # infinite sums, dropped below
            np.subtract(total, part, out=total)
        self._drop_nonfinite(packet, total)

    def _drop_nonfinite(self, packet: NDArray[Any], residual: NDArray[Any]) -> None:
        """The scales tell cheaply whether there is anything to drop."""
        if not np.isfinite(self.scales(packet)).all():
            drop_nonfinite(residual)

    def _gather(self, parts: Parts, packets: Parts, group: Group) -> Iterator[Round]:
        """All-gather; each packet is unpacked while the next one travels."""
        rank, size, arrived = group.rank, group.size, None
        schedule = ring.all_gather(rank, size, size * len(packets[0]), len(packets[0]))
        for number, step in enumerate(schedule):
            yield step
            if arrived is not None:
                self.unpack(packets[arrived], parts[arrived])
            arrived = (rank - number - 1) % size
        yield FLUSH
        if arrived is not None:
            self.unpack(packets[arrived], parts[arrived])

    def state(self) -> RunState:
        """Both residuals, and the calls so far, which seed stochastic rounding."""
        state = RunState()
        self.residuals.save(state)
        self.owner_residuals.save(state)
        state.set_numbers(calls=self._calls)
        return state

    def load_state(self, state: RunState) -> None:
        """Go on from what `state` returned."""
        self._calls = int(state.take_number("calls", self._calls))
        self.owner_residuals.load(state)
        if self.options.error_feedback:
            self.residuals.load(state)

    def scales(self, packet: NDArray[Any]) -> NDArray[Any]:
        """The scales at the head of a packet, (blocks,) float32."""
        return packet[: len(packet) * 8 // (32 + self.bits * self.block) * 4].view(np.float32)

    def _packet_seed(self, rank: int, part: int) -> int:
        """Another one for each packet of the run."""
        text = struct.pack("<4Q", self.seed, self._calls, rank, part)
        return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")

    def _borrow(self, name: str, count: int, dtype: Any, like: Any = None) -> NDArray[Any]:
        """Reused memory, by name and length; on the device of `like`."""
        held = self._scratch.get((name, count))
        if held is None:
            held = self._scratch[name, count] = array_module(like).empty(count, dtype)
        return held
