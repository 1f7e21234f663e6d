"""A machine as the cost model sees it: latencies and bandwidths."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from mpidl.errors import ConfigError


@dataclass(frozen=True)
class Machine:
    """The parameters of the cost model.

    Latencies are those of a whole round, with the overhead of Python and MPI, in microseconds.
    Bandwidths are in GB/s (10^9 bytes).

    Attributes:
        latency_us: Of a message between nodes.
        bandwidth_gb_s: Of a node's link, in each direction.
        node_latency_us: Of a message inside a node.
        node_gb_s: Of a rank's messages inside a node.
        reduce_gb_s: Of reducing one buffer into another.
        shared_latency_us: Of an all-reduce in the shared memory of a node, for each doubling of
            its ranks.
        shared_gb_s: Of that all-reduce: bytes of the buffer by time.
        ranks_per_node: Ranks on each node.
    """

    latency_us: float = 5.0
    bandwidth_gb_s: float = 12.5
    node_latency_us: float = 2.0
    node_gb_s: float = 5.0
    reduce_gb_s: float = 8.0
    shared_latency_us: float = 3.0
    shared_gb_s: float = 4.0
    ranks_per_node: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ConfigError(
                    f"{field.name} is {getattr(self, field.name)}",
                    where="machine",
                    remedy="it must be positive",
                )

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    def nodes(self, size: int) -> tuple[int, ...]:
        """The node of each of `size` ranks; nodes are filled one after another."""
        return tuple(rank // self.ranks_per_node for rank in range(size))

    def message_seconds(self, nbytes: float, remote: bool, flows: int = 1) -> float:
        """Seconds for one message.

        Args:
            nbytes: Its length.
            remote: Whether it leaves the node.
            flows: Messages that share the node's link.
        """
        if remote:
            return self.latency_us * 1e-6 + nbytes * flows / (self.bandwidth_gb_s * 1e9)
        return self.node_latency_us * 1e-6 + nbytes / (self.node_gb_s * 1e9)

    def reduce_seconds(self, nbytes: float) -> float:
        """Seconds to reduce one buffer into another."""
        return nbytes / (self.reduce_gb_s * 1e9)

    def shared_seconds(self, nbytes: float, ranks: int) -> float:
        """Seconds for a round in shared memory.

        The memory traffic of each rank is that of two ranks; more ranks only wait longer.
        """
        latency = self.shared_latency_us * 1e-6 * max(1, math.log2(ranks))
        return latency + nbytes / (self.shared_gb_s * 1e9)
