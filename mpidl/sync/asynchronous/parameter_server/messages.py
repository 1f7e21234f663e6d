"""Messages between workers and servers: a head of a few numbers, and perhaps a range of the flat
buffer behind it."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

TAG = 1  # of MPI
HEAD = 3  # numbers of 8 bytes; float64 is exact for counts up to 2^53


class Kind(IntEnum):
    """What a worker says."""

    PUSH = 0  # a gradient: number, learning rate
    ASK = 1  # wants parameters, without a gradient: its first step of an epoch
    DONE = 2  # takes no more steps in this epoch


class Message:
    """A message of words of 8 bytes, since MPI counts elements in 32 bits.

    Args:
        count: Elements of the body.
        dtype: Of the body.

    Attributes:
        words: All of it, to be sent.
        head: (HEAD,) float64.
        body: (count,), a view.
    """

    def __init__(self, count: int, dtype: np.dtype[Any]) -> None:
        self.words = np.zeros(HEAD + -(-count * dtype.itemsize // 8), np.float64)
        self.head: NDArray[np.float64] = self.words[:HEAD]
        self.body: NDArray[Any] = self.words[HEAD:].view(dtype)[:count]

    # --- from a worker ---
    def say(self, kind: Kind, number: int, lr: float) -> None:
        """Fill the head: what it is, the gradient's number and its learning rate."""
        self.head[:] = kind, number, lr

    @property
    def kind(self) -> Kind:
        """What the worker says."""
        return Kind(int(self.head[0]))

    @property
    def number(self) -> int:
        """Of the gradient, counted by its worker."""
        return int(self.head[1])

    @property
    def lr(self) -> float:
        """The learning rate."""
        return float(self.head[2])

    # --- from a server ---
    @property
    def step(self) -> int | None:
        """The number of the step that the worker may take; None: the epoch is over."""
        return None if self.head[0] < 0 else int(self.head[0])

    @step.setter
    def step(self, number: int | None) -> None:
        self.head[0] = -1 if number is None else number
