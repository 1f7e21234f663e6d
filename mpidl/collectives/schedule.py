"""The vocabulary of schedules.

A collective algorithm is a generator, written from the point of view of one rank, that yields rounds. Interpreters give the
rounds a meaning: `execute` sends real messages, `simulate` plays all ranks in one process, `cost` predicts their time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

Range = tuple[int, int]


class Exchange(NamedTuple):
    """One round: send buffer[send] to a peer while receiving buffer[receive] from a peer.

    send, receive: (start, stop) in elements; an empty range means no message in that direction.
    combine: whether the received elements are reduced into buffer[receive] (True) or replace them (False).
    """

    to: int
    send: Range
    source: int
    receive: Range
    combine: bool


class Native(NamedTuple):
    """One round: the MPI library's own all-reduce over buffer[start:stop]."""

    start: int
    stop: int


class Shared(NamedTuple):
    """One round among the ranks of a node, in shared memory, over buffer[start:stop].

    what: "all_reduce", "reduce" to the node's first rank (what the others then hold is undefined) or "broadcast" from it.
    members: the ranks of the node, ascending.
    """

    what: Literal["all_reduce", "reduce", "broadcast"]
    start: int
    stop: int
    members: tuple[int, ...]


Round = Exchange | Native | Shared
Schedule = Iterator[Round]
# (rank, size, length) -> rounds of this rank
Algorithm = Callable[[int, int, int], Schedule]
NOTHING: Range = (0, 0)


def part(index: int, parts: int, length: int) -> Range:
    """The range of part `index` when `length` elements are cut into `parts` parts that differ by at most one element."""
    return index * length // parts, (index + 1) * length // parts


def spans(first: int, count: int, parts: int, length: int) -> list[Range]:
    """The ranges of `count` consecutive parts from `first` on, counted modulo `parts`: one range, or two where they wrap."""
    first %= parts
    if first + count <= parts:
        return [(part(first, parts, length)[0], part(first + count - 1, parts, length)[1])]
    return [
        *spans(first, parts - first, parts, length),
        *spans(0, first + count - parts, parts, length),
    ]


def segments(whole: Range, size: int) -> list[Range]:
    """`whole` cut into pieces of at most `size` elements; at least one piece, which may be empty."""
    start, stop = whole
    return [(at, min(at + size, stop)) for at in range(start, stop, size)] or [whole]


def aligned(first: list[Range], second: list[Range]) -> Iterator[tuple[Range, Range]]:
    """Pairs from two lists of different length; what one lacks is an empty range."""
    for index in range(max(len(first), len(second))):
        yield (
            first[index] if index < len(first) else NOTHING,
            second[index] if index < len(second) else NOTHING,
        )
