"""Binomial trees: broadcast, reduce, scatter and gather in ceil(log2 P) rounds.

Also the all-reduce made of a reduce and a broadcast.
"""

from __future__ import annotations

from collections.abc import Iterator

from mpidl.collectives.schedule import NOTHING, Exchange, Schedule, anywhere, block_ranges


def _links(rank: int, size: int, root: int) -> Iterator[tuple[int, bool, int, int]]:
    """This rank's edges of the tree, from the leaves to the root.

    Yields:
        (peer, whether the peer is the parent, first rank of the subtree below the edge, relative to
        the root, number of ranks in it).
    """
    me = (rank - root) % size
    distance = 1
    while distance < size:
        if me & distance:
            yield (me - distance + root) % size, True, me, min(distance, size - me)
            return
        if me + distance < size:
            yield (
                (me + distance + root) % size,
                False,
                me + distance,
                min(distance, size - me - distance),
            )
        distance *= 2


def reduce(rank: int, size: int, length: int, root: int = 0) -> Schedule:
    """The root's buffer becomes the reduction; the others' hold partial results."""
    for peer, parent, _, _ in _links(rank, size, root):
        send, receive = ((0, length), NOTHING) if parent else (NOTHING, (0, length))
        yield Exchange(peer, send, peer, receive, True)


def broadcast(rank: int, size: int, length: int, root: int = 0) -> Schedule:
    """The root's buffer reaches every rank."""
    for peer, parent, _, _ in reversed(list(_links(rank, size, root))):
        send, receive = (NOTHING, (0, length)) if parent else ((0, length), NOTHING)
        yield Exchange(peer, send, peer, receive, False)


def tree(rank: int, size: int, length: int) -> Schedule:
    """All-reduce: up the tree, then down again."""
    yield from reduce(rank, size, length)
    yield from broadcast(rank, size, length)


TREE = anywhere(tree)


def gather(rank: int, size: int, length: int, root: int = 0) -> Schedule:
    """Block r of rank r's buffer reaches block r of the root's.

    The others' buffers hold the blocks of their subtrees.
    """
    for peer, parent, first, count in _links(rank, size, root):
        for block in block_ranges(first + root, count, size, length):
            send, receive = (block, NOTHING) if parent else (NOTHING, block)
            yield Exchange(peer, send, peer, receive, False)


def scatter(rank: int, size: int, length: int, root: int = 0) -> Schedule:
    """Block r of the root's buffer reaches block r of rank r's."""
    for peer, parent, first, count in reversed(list(_links(rank, size, root))):
        for block in block_ranges(first + root, count, size, length):
            send, receive = (NOTHING, block) if parent else (block, NOTHING)
            yield Exchange(peer, send, peer, receive, False)
