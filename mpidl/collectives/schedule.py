"""The vocabulary of schedules.

A collective algorithm is a generator, written from the point of view of one rank, that yields rounds. Interpreters give the
rounds a meaning: `execute` sends real messages, `simulate` plays all ranks in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple


class Exchange(NamedTuple):
    """One round: send buffer[send] to a peer while receiving buffer[receive] from a peer.

    send, receive: (start, stop) in elements; an empty range means no message in that direction.
    combine: whether the received elements are reduced into buffer[receive] (True) or replace them (False).
    """

    to: int
    send: tuple[int, int]
    source: int
    receive: tuple[int, int]
    combine: bool


class Native(NamedTuple):
    """One round: the MPI library's own all-reduce over buffer[start:stop]."""

    start: int
    stop: int


Round = Exchange | Native
Schedule = Iterator[Round]
# (rank, size, length) -> rounds of this rank
Algorithm = Callable[[int, int, int], Schedule]


def part(index: int, parts: int, length: int) -> tuple[int, int]:
    """The range of part `index` when `length` elements are cut into `parts` parts that differ by at most one element."""
    return index * length // parts, (index + 1) * length // parts
