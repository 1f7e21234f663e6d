"""Rabenseifner's all-reduce: reduce-scatter by vector halving and distance doubling, then all-gather (Rabenseifner, 2004).

2 log2 P rounds and 2 (P - 1) / P of the buffer sent per rank. Neighbours combine first, (r0 + r1) + (r2 + r3), so that for a
power of two the sum of every element is one fixed binary tree over the ranks (see mpidl.train.accumulate). Where P is not a
power of two, the ranks above the largest one first hand their buffer to a partner, and get the result back at the end.
"""

from __future__ import annotations

from mpidl.collectives.schedule import Exchange, Schedule


def rabenseifner(rank: int, size: int, length: int) -> Schedule:
    """All-reduce of `length` elements over `size` ranks."""
    core = 1 << (size.bit_length() - 1)
    extra = size - core
    whole, nothing = (0, length), (0, 0)
    if rank >= core:
        yield Exchange(to=rank - core, send=whole, source=rank - core, receive=nothing, combine=True)
        yield Exchange(to=rank - core, send=nothing, source=rank - core, receive=whole, combine=False)
        return
    if rank < extra:
        yield Exchange(to=rank + core, send=nothing, source=rank + core, receive=whole, combine=True)
    yield from _core(rank, core, length)
    if rank < extra:
        yield Exchange(to=rank + core, send=whole, source=rank + core, receive=nothing, combine=False)


def _core(rank: int, size: int, length: int) -> Schedule:
    """Among a power of two of ranks."""
    low, high, halves = 0, length, []
    distance = 1
    while distance < size:
        middle = (low + high) // 2
        lower, upper = (low, middle), (middle, high)
        keep, give = (upper, lower) if rank & distance else (lower, upper)
        yield Exchange(to=rank ^ distance, send=give, source=rank ^ distance, receive=keep, combine=True)
        halves.append((keep, give))
        low, high = keep
        distance *= 2
    for keep, give in reversed(halves):
        distance //= 2
        yield Exchange(to=rank ^ distance, send=keep, source=rank ^ distance, receive=give, combine=False)
