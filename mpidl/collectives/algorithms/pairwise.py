"""Algorithms in which every rank exchanges messages with many others.

All-to-all, direct reduce-scatter and the all-reduce made of it, Bruck's all-gather, barrier.
"""

from __future__ import annotations

from mpidl.collectives.algorithms.ring import all_gather
from mpidl.collectives.schedule import (
    Exchange,
    Schedule,
    anywhere,
    block_range,
    block_ranges,
    pair_ranges,
)


def all_to_all(rank: int, size: int, length: int) -> Schedule:
    """Block d of rank s becomes block s of rank d, in P - 1 rounds.

    The buffer is (2 n,): half to send, half to receive.
    """
    half = length // 2
    for step in range(1, size):
        dest, source = (rank + step) % size, (rank - step) % size
        low, high = block_range(source, size, half)
        send = block_range(dest, size, half)
        yield Exchange(dest, send, source, (half + low, half + high), False)


def direct_reduce_scatter(rank: int, size: int, length: int) -> Schedule:
    """Every rank sends every other one its block, unreduced.

    Sums of 16-bit floats are rounded once only, at their end.
    """
    own = block_range(rank, size, length)
    for step in range(1, size):
        dest, source = (rank + step) % size, (rank - step) % size
        yield Exchange(dest, block_range(dest, size, length), source, own, True)


def direct(rank: int, size: int, length: int) -> Schedule:
    """All-reduce by direct reduce-scatter and ring all-gather.

    As many bytes as the ring, to P - 1 different peers.
    """
    yield from direct_reduce_scatter(rank, size, length)
    yield from all_gather(rank, size, length)


DIRECT = anywhere(direct)


def bruck(rank: int, size: int, length: int) -> Schedule:
    """All-gather in ceil(log2 P) rounds; each doubles what a rank holds (Bruck et al., 1997)."""
    held = 1
    while held < size:
        more = min(held, size - held)
        dest, source = (rank - held) % size, (rank + held) % size
        for send, receive in pair_ranges(
            block_ranges(rank, more, size, length), block_ranges(rank + held, more, size, length)
        ):
            yield Exchange(dest, send, source, receive, False)
        held *= 2


def dissemination(rank: int, size: int, length: int) -> Schedule:
    """Barrier in ceil(log2 P) rounds (Hensgen et al., 1988).

    The buffer has two elements: one to send, one to receive.
    """
    distance = 1
    while distance < size:
        yield Exchange((rank + distance) % size, (0, 1), (rank - distance) % size, (1, 2), False)
        distance *= 2
