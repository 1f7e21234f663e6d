"""Algorithms in which every rank talks to every other one: all-to-all, direct reduce-scatter, Bruck's all-gather, barrier."""

from __future__ import annotations

from mpidl.collectives.algorithms.ring import all_gather
from mpidl.collectives.schedule import Exchange, Schedule, aligned, part, spans


def all_to_all(rank: int, size: int, length: int) -> Schedule:
    """buffer: (2 n,), half to send, half to receive: part d of rank s becomes part s of rank d. P - 1 rounds."""
    half = length // 2
    for step in range(1, size):
        to, source = (rank + step) % size, (rank - step) % size
        low, high = part(source, size, half)
        yield Exchange(to, part(to, size, half), source, (half + low, half + high), False)


def direct_reduce_scatter(rank: int, size: int, length: int) -> Schedule:
    """Every rank sends every other one its part as it is: sums of 16-bit floats are rounded once only, at their end."""
    for step in range(1, size):
        to, source = (rank + step) % size, (rank - step) % size
        yield Exchange(to, part(to, size, length), source, part(rank, size, length), True)


def direct(rank: int, size: int, length: int) -> Schedule:
    """All-reduce by direct reduce-scatter and ring all-gather: as many bytes as the ring, to P - 1 different peers."""
    yield from direct_reduce_scatter(rank, size, length)
    yield from all_gather(rank, size, length)


def bruck(rank: int, size: int, length: int) -> Schedule:
    """All-gather in ceil(log2 P) rounds: what a rank holds doubles in each (Bruck et al., 1997)."""
    held = 1
    while held < size:
        more = min(held, size - held)
        to, source = (rank - held) % size, (rank + held) % size
        for give, take in aligned(
            spans(rank, more, size, length), spans(rank + held, more, size, length)
        ):
            yield Exchange(to, give, source, take, False)
        held *= 2


def dissemination(rank: int, size: int, length: int) -> Schedule:
    """Barrier in ceil(log2 P) rounds over a buffer of two elements: one to send, one to receive (Hensgen et al., 1988)."""
    distance = 1
    while distance < size:
        yield Exchange((rank + distance) % size, (0, 1), (rank - distance) % size, (1, 2), False)
        distance *= 2
