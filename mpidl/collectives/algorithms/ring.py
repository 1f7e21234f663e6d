"""Ring all-reduce: reduce-scatter, then all-gather, each in P - 1 rounds (Patarasu and Yuan, 2009).

Every rank sends 2 (P - 1) / P of the buffer, the least that is possible, and only to its neighbor.
Large blocks go in segments: while one is reduced the next one is in flight.
"""

from __future__ import annotations

from mpidl.collectives.schedule import (
    Exchange,
    Schedule,
    anywhere,
    block_range,
    pair_ranges,
    segments,
)

SEGMENT = 1 << 19  # elements
# Of messages that are encrypted within a node, where memory is the network: larger ones pay
SEALED_SEGMENT = 1 << 20


def _circulate(
    rank: int, size: int, length: int, first: int, segment: int, reduce: bool
) -> Schedule:
    """P - 1 rounds of blocks to the right neighbor, beginning with block `first`."""
    right, left = (rank + 1) % size, (rank - 1) % size
    for step in range(size - 1):
        outgoing = segments(block_range((first - step) % size, size, length), segment)
        incoming = segments(block_range((first - step - 1) % size, size, length), segment)
        for send, receive in pair_ranges(outgoing, incoming):
            yield Exchange(right, send, left, receive, reduce)


def reduce_scatter(rank: int, size: int, length: int, segment: int = SEGMENT) -> Schedule:
    """After P - 1 rounds block `rank` is reduced over all ranks; the rest is partial results."""
    yield from _circulate(rank, size, length, rank - 1, segment, True)


def all_gather(rank: int, size: int, length: int, segment: int = SEGMENT) -> Schedule:
    """Circulates block `rank` of every rank until every rank has all of them."""
    yield from _circulate(rank, size, length, rank, segment, False)


def ring(rank: int, size: int, length: int, segment: int = SEGMENT) -> Schedule:
    """All-reduce of `length` elements, in segments of at most `segment` elements."""
    yield from reduce_scatter(rank, size, length, segment)
    yield from all_gather(rank, size, length, segment)


def sealed_ring(rank: int, size: int, length: int) -> Schedule:
    """`ring` in the segments of messages that are encrypted within a node."""
    yield from ring(rank, size, length, SEALED_SEGMENT)


RING = anywhere(ring)
