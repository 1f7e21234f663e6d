"""Recursive doubling: whole buffers to ranks at distance 1, 2, 4, ... (Thakur et al., 2005).

The fewest rounds, for small messages. Neighbors are reduced first, as in
mpidl.collectives.algorithms.rabenseifner, so that both give the same bits.
"""

from __future__ import annotations

from mpidl.collectives.algorithms.rabenseifner import any_size
from mpidl.collectives.schedule import Exchange, Schedule, anywhere


def recursive_doubling(rank: int, size: int, length: int) -> Schedule:
    """All-reduce in ceil(log2 P) rounds; two more where P is not a power of two."""
    yield from any_size(rank, size, length, _core)


RECURSIVE_DOUBLING = anywhere(recursive_doubling)


def _core(rank: int, size: int, length: int) -> Schedule:
    distance = 1
    while distance < size:
        yield Exchange(rank ^ distance, (0, length), rank ^ distance, (0, length), True)
        distance *= 2
