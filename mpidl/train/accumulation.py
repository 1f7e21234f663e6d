"""Sums the gradients of micro-batches in one fixed order: no bit depends on the number of ranks.

The global batch is cut at fixed places into M micro-batches, M a power of two. The gradient of the
batch is their sum along one binary tree: ((g0 + g1) + (g2 + g3)) + ... Each rank adds its own part
of the tree here; the upper part is added by an all-reduce that combines neighbors first
(mpidl.collectives.algorithms.rabenseifner; with two ranks every all-reduce does). So the result is
the same to the last bit for 1, 2, 4, ... M ranks. Micro-batches also bound the memory for
activations.
"""

from __future__ import annotations

from mpidl.backend import Array
from mpidl.nn import FlatParameters


class TreeSum:
    """Adds up what is left in `parameters.message` after each micro-batch.

    Args:
        parameters: The flat buffers.
        count: Micro-batches of this rank, a power of two or 1.
    """

    def __init__(self, parameters: FlatParameters, count: int) -> None:
        self._message = parameters.message
        self._count = count
        self._seen = 0
        self._partial: list[Array] = [
            parameters.ops.xp.empty_like(self._message) for _ in range(count.bit_length() - 1)
        ]

    @property
    def at_last(self) -> bool:
        """Whether the next leaf is the last one: what it adds is final."""
        return self._seen == self._count - 1

    def add(self) -> None:
        """Take the message as the next leaf; after the last one the message holds the sum."""
        self.add_part(0, len(self._message))
        self.advance()

    def add_part(self, start: int, stop: int) -> None:
        """Take elements [start, stop) of the message as those of the next leaf, each once."""
        own = self._message[start:stop]
        level = 0
        place = self._seen
        while place & 1:
            own += self._partial[level][start:stop]
            level += 1
            place >>= 1
        if not self.at_last:
            self._partial[level][start:stop] = own

    def advance(self) -> None:
        """Complete the leaf."""
        self._seen = (self._seen + 1) % self._count

    def reset(self) -> None:
        """Forget the leaves of an unfinished step."""
        self._seen = 0
