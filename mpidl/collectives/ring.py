"""Ring all-reduce: reduce-scatter, then all-gather, each in P - 1 rounds (Patarasu and Yuan, 2009).

Every rank sends 2 (P - 1) / P of the buffer, the least that is possible, and talks only to its two neighbours.
"""

from __future__ import annotations

from mpidl.collectives.schedule import Exchange, Schedule, part


def reduce_scatter(rank: int, size: int, length: int) -> Schedule:
    """After P - 1 rounds part (rank + 1) % P of the buffer holds the reduction over all ranks."""
    for step in range(size - 1):
        yield Exchange(
            to=(rank + 1) % size,
            send=part((rank - step) % size, size, length),
            source=(rank - 1) % size,
            receive=part((rank - step - 1) % size, size, length),
            combine=True,
        )


def all_gather(rank: int, size: int, length: int) -> Schedule:
    """Hands the finished parts of `reduce_scatter` around until every rank has all of them."""
    for step in range(size - 1):
        yield Exchange(
            to=(rank + 1) % size,
            send=part((rank + 1 - step) % size, size, length),
            source=(rank - 1) % size,
            receive=part((rank - step) % size, size, length),
            combine=False,
        )


def ring(rank: int, size: int, length: int) -> Schedule:
    """All-reduce of `length` elements over `size` ranks."""
    yield from reduce_scatter(rank, size, length)
    yield from all_gather(rank, size, length)
