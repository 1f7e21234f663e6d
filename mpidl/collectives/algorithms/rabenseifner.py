"""Rabenseifner's all-reduce (Rabenseifner, 2004).

Reduce-scatter by vector halving and distance doubling, then all-gather: 2 log2 P rounds and
2 (P - 1) / P of the buffer sent per rank. Neighbors are reduced first, (r0 + r1) + (r2 + r3), so
that for a power of two the sum of every element is one fixed binary tree over the ranks (see
mpidl.train.accumulation). Where P is not a power of two, the ranks above the largest one first hand
their buffer to a partner, and get the result back at the end.
"""

from __future__ import annotations

from mpidl.collectives.schedule import NOTHING, Algorithm, Exchange, Schedule, anywhere


def any_size(rank: int, size: int, length: int, core_algorithm: Algorithm) -> Schedule:
    """`core_algorithm`, which needs a power of two of ranks, for any number of them."""
    core = 1 << (size.bit_length() - 1)
    extra = size - core
    whole = (0, length)
    if rank >= core:
        yield Exchange(rank - core, whole, rank - core, NOTHING, True)
        yield Exchange(rank - core, NOTHING, rank - core, whole, False)
        return
    if rank < extra:
        yield Exchange(rank + core, NOTHING, rank + core, whole, True)
    yield from core_algorithm(rank, core, length)
    if rank < extra:
        yield Exchange(rank + core, whole, rank + core, NOTHING, False)


def rabenseifner(rank: int, size: int, length: int) -> Schedule:
    """All-reduce of `length` elements over `size` ranks."""
    yield from any_size(rank, size, length, _core)


RABENSEIFNER = anywhere(rabenseifner)


def _core(rank: int, size: int, length: int) -> Schedule:
    """Among a power of two of ranks."""
    low, high = 0, length
    halves = []
    distance = 1
    while distance < size:
        middle = (low + high) // 2
        lower, upper = (low, middle), (middle, high)
        keep, give = (upper, lower) if rank & distance else (lower, upper)
        yield Exchange(rank ^ distance, give, rank ^ distance, keep, True)
        halves.append((keep, give))
        low, high = keep
        distance *= 2
    for keep, give in reversed(halves):
        distance //= 2
        yield Exchange(rank ^ distance, keep, rank ^ distance, give, False)
