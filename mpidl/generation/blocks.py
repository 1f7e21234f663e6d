"""Blocks of the cache: which are free, which hold the beginning of several sequences."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence

Key = tuple[int, tuple[int, ...]]  # the contents before, and the tokens of this block
ROOT = -1


class BlockPool:
    """Hands out numbers of blocks of `block` tokens, and finds those that hold known tokens.

    A full block is known by its tokens and the contents before it, so by all tokens up to its end.
    Contents have numbers that are never used again, as those of blocks are: what stood behind a
    block that holds something else by now is not found any more. A block is shared by the sequences
    that begin with its tokens, and stays known when nobody uses it, until its memory is needed.

    Args:
        count: Of blocks.
        block: Tokens of a block.
    """

    def __init__(self, count: int, block: int) -> None:
        self.count = count
        self.block = block
        self._users = [0] * count
        self._empty = list(range(count - 1, -1, -1))
        self._unused: OrderedDict[int, None] = OrderedDict()  # known, without users; oldest first
        self._known: dict[Key, int] = {}
        self._keys: dict[int, Key] = {}
        self._contents: dict[int, int] = {}  # block -> number of what it holds
        self._numbers = itertools.count()

    @property
    def free(self) -> int:
        """Blocks that can be taken."""
        return len(self._empty) + len(self._unused)

    def take(self) -> int | None:
        """A block with arbitrary contents; None: all are used."""
        if self._empty:
            number = self._empty.pop()
        elif self._unused:
            number, _ = self._unused.popitem(last=False)
        else:
            return None
        self._forget(number)
        self._users[number] = 1
        return number

    def _forget(self, number: int) -> None:
        self._contents.pop(number, None)
        key = self._keys.pop(number, None)
        if key is not None and self._known.get(key) == number:
            del self._known[key]

    def give_back(self, number: int) -> None:
        """One user fewer."""
        self._users[number] -= 1
        if self._users[number]:
            return
        if number in self._keys:
            self._unused[number] = None
        else:
            self._empty.append(number)

    def learn(self, number: int, before: int, tokens: Sequence[int]) -> None:
        """Say what a full block holds.

        Args:
            number: Of the block.
            before: The block before it; ROOT: it is the first.
            tokens: Its tokens.
        """
        key = (ROOT if before == ROOT else self._contents[before]), tuple(tokens)
        known = self._known.get(key)
        if known is not None:
            self._contents[number] = self._contents[known]
        elif number not in self._keys:
            self._contents[number] = next(self._numbers)
            self._known[key] = number
            self._keys[number] = key

    def find(self, tokens: Sequence[int]) -> list[int]:
        """Take the blocks that hold the beginning of a sequence; the caller is one more user.

        At least one token is left to be computed, whose output is needed.

        Args:
            tokens: Of the sequence.
        """
        found: list[int] = []
        before = ROOT
        for start in range(0, len(tokens) - self.block, self.block):
            number = self._known.get((before, tuple(tokens[start : start + self.block])))
            if number is None:
                break
            self._users[number] += 1
            self._unused.pop(number, None)
            found.append(number)
            before = self._contents[number]
        return found
