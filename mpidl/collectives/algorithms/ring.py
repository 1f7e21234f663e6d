"""Ring all-reduce: reduce-scatter, then all-gather, each in P - 1 rounds (Patarasu and Yuan, 2009).

Every rank sends 2 (P - 1) / P of the buffer, the least that is possible, and talks only to its two neighbors. Large parts go
in segments: while one is reduced the next one is on its way.
"""

from __future__ import annotations

from mpidl.collectives.schedule import Exchange, Schedule, aligned, part, segments

SEGMENT = 1 << 19  # elements


def _around(rank: int, size: int, length: int, send: int, segment: int, combine: bool) -> Schedule:
    for step in range(size - 1):
        outgoing = segments(part((send - step) % size, size, length), segment)
        incoming = segments(part((send - step - 1) % size, size, length), segment)
        for give, take in aligned(outgoing, incoming):
            yield Exchange((rank + 1) % size, give, (rank - 1) % size, take, combine)


def reduce_scatter(rank: int, size: int, length: int, segment: int = SEGMENT) -> Schedule:
    """After P - 1 rounds part `rank` of the buffer holds the reduction over all ranks; the rest holds partial results."""
    yield from _around(rank, size, length, rank - 1, segment, True)


def all_gather(rank: int, size: int, length: int, segment: int = SEGMENT) -> Schedule:
    """Hands part `rank` of every rank around until every rank has all of them."""
    yield from _around(rank, size, length, rank, segment, False)


def ring(rank: int, size: int, length: int, segment: int = SEGMENT) -> Schedule:
    """All-reduce of `length` elements over `size` ranks, in segments of at most `segment` elements."""
    yield from reduce_scatter(rank, size, length, segment)
    yield from all_gather(rank, size, length, segment)
