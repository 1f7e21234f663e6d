"""Binomial trees: broadcast, reduce, scatter and gather in ceil(log2 P) rounds, and the all-reduce made of two of them."""

from __future__ import annotations

from collections.abc import Iterator

from mpidl.collectives.schedule import NOTHING, Exchange, Schedule, spans


def _links(rank: int, size: int, root: int) -> Iterator[tuple[int, bool, int, int]]:
    """This rank's edges of the tree, from the leaves to the root: (peer, whether the peer is the parent, first, count).

    first, count: the ranks, relative to the root, in the subtree below the edge.
    """
    me, distance = (rank - root) % size, 1
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


def gather(rank: int, size: int, length: int, root: int = 0) -> Schedule:
    """Part r of rank r's buffer reaches part r of the root's; the others' buffers hold their subtrees' parts."""
    for peer, parent, first, count in _links(rank, size, root):
        for span in spans(first + root, count, size, length):
            send, receive = (span, NOTHING) if parent else (NOTHING, span)
            yield Exchange(peer, send, peer, receive, False)


def scatter(rank: int, size: int, length: int, root: int = 0) -> Schedule:
    """Part r of the root's buffer reaches part r of rank r's."""
    for peer, parent, first, count in reversed(list(_links(rank, size, root))):
        for span in spans(first + root, count, size, length):
            send, receive = (NOTHING, span) if parent else (span, NOTHING)
            yield Exchange(peer, send, peer, receive, False)
