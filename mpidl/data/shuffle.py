"""Random orders from counters: a function of (seed, epoch, lane) alone, many lanes at once.

Every sample gets a random number, which is a hash of what is to be shuffled and of its position,
and the samples are sorted by it. The position itself is in the lowest bits of the sorted words, so
that no two are equal and the order is the same on every processor. A generator for each lane and
each block of a lane took ten times as long where windows are small.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Words = NDArray[np.uint64]

_WEYL = np.uint64(0x9E3779B97F4A7C15)  # of SplitMix64 (Steele, Lea and Flood, 2014)
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
ORDER, BLOCKS = 1, 2  # what random words are for


def words(key: Sequence[int], lanes: Indices, count: int) -> Words:
    """Random 64-bit words: (len(lanes), count), word i of a lane a function of (key, lane, i)."""
    start = np.zeros((1, 1), np.uint64)
    for number in key:
        start = _mixed(start ^ np.uint64(number & (1 << 64) - 1))
    rows = _mixed(start + lanes.astype(np.uint64)[:, None])
    return _mixed(rows + np.arange(count).astype(np.uint64))


def _mixed(x: Words) -> Words:
    """The output function of SplitMix64, of which every input gives another output."""
    x = (x + np.uint64(1)) * _WEYL
    for shift, factor in _MIX:
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    return x


def permutations(key: Sequence[int], lanes: Indices, count: int) -> Indices:
    """A uniformly random permutation of 0..count-1 for each lane: (len(lanes), count)."""
    return shuffled(key, lanes, count, count)


def shuffled(key: Sequence[int], lanes: Indices, length: int, block: int) -> Indices:
    """The positions 0..length-1 in random order, for each lane.

    Args:
        key: Seed, epoch and the like.
        lanes: (k,) numbers of the lanes.
        length: Of each lane.
        block: Positions are cut into blocks of so many; blocks come in random order, a shorter one
            last, and in each of them its positions in random order.

    Returns:
        (k, length).
    """
    full, rest = divmod(length, block)
    within = np.uint64(max(1, (min(block, length) - 1).bit_length()))
    mask = (np.uint64(1) << within) - np.uint64(1)
    # [rank of the block, random, position in the block], sorted as one word
    position = np.arange(length, dtype=np.uint64) % np.uint64(block)
    word = words([*key, ORDER], lanes, length) & ~mask | position
    if full + (rest > 0) <= 1:
        word.sort(axis=1)
        return (word & mask).astype(np.int64)
    order = (
        permutations([*key, BLOCKS], lanes, full) if full > 1 else np.zeros((len(lanes), 1), int)
    )
    if rest:
        order = np.concatenate([order, np.full((len(lanes), 1), full)], axis=1)
    rank = np.argsort(order, axis=1).astype(np.uint64)
    bits = np.uint64(max(1, full.bit_length()))
    word >>= bits
    word = word & ~mask | position
    word |= np.repeat(rank, block, axis=1)[:, :length] << (np.uint64(64) - bits)
    word.sort(axis=1)
    blocks = np.repeat(order, block, axis=1)
    if rest:
        blocks = blocks[:, :length]
    return np.asarray((word & mask).astype(np.int64) + blocks * block)
