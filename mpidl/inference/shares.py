"""Who does which chunks: ranks take numbers as they get free, several at once while many are left.

Taking several spares a rank much of what a chunk costs beside its forward passes; towards the end
they take one, so that they end together. Source: guided self-scheduling, Polychronopoulos and Kuck,
IEEE Trans. Computers C-36 (1987).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mpidl.collectives.window import Window
from mpidl.comm.context import Context

OVER = 1 << 40  # no number of a chunk


class Shares:
    """Hands out numbers, each to one rank; can be opened again. Collective."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._count = self._next = 0
        single = context.size == 1
        self._window = None if single else Window(context.comm, int(context.is_root), np.int64)

    def open(self, count: int) -> None:
        """Hand out the numbers below `count`. Collective."""
        self._count, self._next = count, 0
        if self._window is not None:
            self._context.barrier()
            if self._context.is_root:
                self._window.reset(0)
            self._context.barrier()

    def take(self, most: int = 1) -> range:
        """The next numbers; none: there are no more.

        Args:
            most: At most so many; fewer towards the end, as far as this rank knows it.
        """
        count = how_many(self._count - self._next, self._context.size, most)
        number = self._next
        if self._window is not None:
            number = self._window.fetch_and_add(0, increment=count)
        self._next = number + count
        return range(min(number, self._count), min(number + count, self._count))

    def stop(self) -> None:
        """Hand out no more, to any rank."""
        if self._window is None:
            self._next = OVER
        else:
            self._window.fetch_and_add(0, increment=OVER)


def how_many(left: int, ranks: int, most: int) -> int:
    """How many numbers a rank takes at once: half of its share of what is left.

    Args:
        left: Numbers that nobody has taken.
        ranks: That take some.
        most: At most so many.
    """
    return max(1, min(most, left // (2 * ranks)))


def runs(numbers: range, chunks: NDArray[np.int64]) -> Iterator[range]:
    """The numbers, cut where their chunks do not follow each other.

    Args:
        numbers: Of chunks.
        chunks: All of them by number, ascending.
    """
    start = numbers.start
    for number in numbers:
        if number + 1 == numbers.stop or chunks[number + 1] != chunks[number] + 1:
            yield range(start, number + 1)
            start = number + 1
