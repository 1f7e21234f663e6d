"""Recursive doubling: whole buffers to ranks at distance 1, 2, 4, ...; fewest rounds, for small messages (Thakur et al., 2005).

Neighbors combine first, as in mpidl.collectives.algorithms.rabenseifner, so that both give the same bits.
"""

from __future__ import annotations

from mpidl.collectives.algorithms.rabenseifner import folded
from mpidl.collectives.schedule import Exchange, Schedule


def recursive_doubling(rank: int, size: int, length: int) -> Schedule:
    """All-reduce of `length` elements over `size` ranks in ceil(log2 P) rounds (two more where P is not a power of two)."""
    yield from folded(rank, size, length, _core)


def _core(rank: int, size: int, length: int) -> Schedule:
    distance = 1
    while distance < size:
        yield Exchange(rank ^ distance, (0, length), rank ^ distance, (0, length), True)
        distance *= 2
