"""The vocabulary of schedules.

A collective algorithm is a generator, written from the point of view of one rank, that yields
rounds. Interpreters give the rounds a meaning: `execute` sends real messages, `simulate` runs all
ranks in one process, `performance.cost` predicts their time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

Range = tuple[int, int]


class Exchange(NamedTuple):
    """One round: send buffer[send] to a peer while receiving buffer[receive] from a peer.

    Attributes:
        dest: The rank that is sent to.
        send: (start, stop) in elements; an empty range sends no message.
        source: The rank that is received from.
        receive: (start, stop) in elements; an empty range receives no message.
        reduce: The received elements are reduced into buffer[receive]; else they replace them.
    """

    dest: int
    send: Range
    source: int
    receive: Range
    reduce: bool


class Native(NamedTuple):
    """One round: the MPI library's own all-reduce over buffer[start:stop]."""

    start: int
    stop: int


class Shared(NamedTuple):
    """One round among the ranks of a node, in shared memory, over buffer[start:stop].

    Attributes:
        what: "all_reduce", "reduce" to the node's first rank (the others' contents are then
            undefined) or "broadcast" from it.
        start: First element.
        stop: One past the last element.
        members: The ranks of the node, ascending.
    """

    what: Literal["all_reduce", "reduce", "broadcast"]
    start: int
    stop: int
    members: tuple[int, ...]


Round = Exchange | Native | Shared
Schedule = Iterator[Round]
# (rank, size, length) -> rounds of this rank
Algorithm = Callable[[int, int, int], Schedule]
Placement = tuple[int, ...]  # the node of each rank
NOTHING: Range = (0, 0)


@dataclass(frozen=True)
class AllReduce:
    """An all-reduce as `ALL_REDUCE` lists it: how to make its schedule, and what it needs.

    Attributes:
        make: Placement of the ranks -> algorithm; the same object for the same placement, since
            plans are cached by it.
        shared_memory: Ranks of a node must share memory.
        half: Takes 16-bit floats.
        fallback: The algorithm that runs where these needs are not met.
    """

    make: Callable[[Placement], Algorithm]
    shared_memory: bool = False
    half: bool = True
    fallback: str = "ring"


def anywhere(algorithm: Algorithm, *, half: bool = True, fallback: str = "ring") -> AllReduce:
    """An all-reduce whose schedule does not depend on the placement of the ranks."""
    return AllReduce(lambda placement: algorithm, half=half, fallback=fallback)


def all_reduce_bytes(nbytes: int, size: int) -> int:
    """Bytes that each of `size` ranks has to send at least to all-reduce a buffer of `nbytes`.

    Patarasu and Yuan, 2009.
    """
    return 2 * (size - 1) * nbytes // size


def block_range(index: int, blocks: int, length: int) -> Range:
    """The range of one of `blocks` blocks of `length` elements; sizes differ by at most one."""
    return index * length // blocks, (index + 1) * length // blocks


def block_ranges(first: int, count: int, blocks: int, length: int) -> list[Range]:
    """The ranges of `count` consecutive blocks from `first` on, counted modulo `blocks`.

    One range, or two where they wrap around.
    """
    first %= blocks
    if first + count <= blocks:
        start, _ = block_range(first, blocks, length)
        _, stop = block_range(first + count - 1, blocks, length)
        return [(start, stop)]
    return [
        *block_ranges(first, blocks - first, blocks, length),
        *block_ranges(0, first + count - blocks, blocks, length),
    ]


def segments(whole: Range, size: int) -> list[Range]:
    """Cut `whole` into ranges of at most `size` elements: at least one, which may be empty."""
    start, stop = whole
    return [(at, min(at + size, stop)) for at in range(start, stop, size)] or [whole]


def pair_ranges(first: list[Range], second: list[Range]) -> Iterator[tuple[Range, Range]]:
    """Pair two lists of ranges; the shorter one is filled up with empty ranges."""
    for index in range(max(len(first), len(second))):
        yield (
            first[index] if index < len(first) else NOTHING,
            second[index] if index < len(second) else NOTHING,
        )
