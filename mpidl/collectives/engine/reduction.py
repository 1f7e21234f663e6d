"""What reducing means: operations, element types, and 16-bit floats that are added in float32.

A mean is a sum that is divided at its end. Of 16-bit floats it is divided before the one rounding.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mpidl.collectives.schedule import Range
from mpidl.comm.activity import Call

OPERATIONS: dict[str, Any] = {
    "sum": np.add,
    "product": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
}
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT16 = np.dtype(np.float16)
# What kernels/cpu/shared.c knows, in its order. Complex numbers are added as pairs of floats.
CODES: dict[np.dtype[Any], int] = {
    np.dtype(name): code
    for code, name in enumerate(
        ("f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", FLOAT16, BFLOAT16)
    )
}
# By number: looking up a dtype itself takes ten times longer.
NUMBERS = {dtype.num: code for dtype, code in CODES.items()}
HALVES = frozenset({FLOAT16.num, BFLOAT16.num})
MEAN = "mean"
OP_CODES = {name: code for code, name in enumerate((*OPERATIONS, MEAN))}  # as in shared.c


def is_half(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is float16 or bfloat16."""
    return dtype.num in HALVES


def call_hash(call: Call | None) -> int:
    """32 bits for a call without its buffer: ranks compare them, message tags are made of them."""
    return hash_words(call.what, call.op, call.name) if call is not None else 0


@lru_cache(4096)
def hash_words(what: str, op: str, name: str) -> int:
    """As `call_hash`, of the words."""
    return zlib.crc32(f"{what} ({op}) {name}".encode())


def tree_reduce(parts: Iterable[NDArray[Any]], op: str) -> NDArray[Any]:
    """The reduction of equally shaped arrays along one binary tree, ((p0 + p1) + (p2 + p3)).

    16-bit floats are added in float32 and rounded once.
    """
    function, stack, dtype = OPERATIONS["sum" if op == MEAN else op], [], None
    for count, part in enumerate(parts, 1):
        index = count - 1
        dtype = part.dtype
        stack.append(part.astype(np.float32) if is_half(dtype) else part)
        while index & 1:
            upper = stack.pop()
            stack[-1], index = function(stack[-1], upper), index >> 1
    while len(stack) > 1:
        upper = stack.pop()
        stack[-1] = function(stack[-1], upper)
    if op == MEAN:
        stack[0] = np.divide(stack[0], count)
    with np.errstate(over="ignore"):
        return np.asarray(stack[0].astype(dtype))


class Reducer:
    """Reduces received ranges into a buffer.

    16-bit floats are kept in float32 from their first reduction until they are sent or the schedule
    ends, so that an element is rounded as few times as the schedule allows.

    Args:
        buffer: (n,) array.
        op: One of `OPERATIONS`.
        divisor: Of these float32 sums, before they are rounded; for schedules that send a range
            only once it is complete.
    """

    def __init__(self, buffer: Any, op: str, divisor: int = 1) -> None:
        self.buffer = buffer
        self.function = OPERATIONS[op]
        self.half = is_half(np.dtype(buffer.dtype))
        self.divisor = divisor
        self._wide: dict[Range, NDArray[np.float32]] = {}

    def reduce(self, where: Range, incoming: Any) -> None:
        """buffer[where] = op(buffer[where], incoming)."""
        target = self.buffer[where[0] : where[1]]
        if not self.half:
            self.function(target, incoming, out=target)
            return
        if where not in self._wide:
            self.round(where)
            self._wide[where] = target.astype(np.float32)
        self.function(self._wide[where], incoming.astype(np.float32), out=self._wide[where])

    def round(self, where: Range | None = None) -> None:
        """Round float32 sums into the buffer, before it is sent or overwritten.

        Args:
            where: Those that overlap this range; None: all.
        """
        start, stop = where or (0, self.buffer.size)
        for held in [held for held in self._wide if held[0] < stop and start < held[1]]:
            wide = self._wide.pop(held)
            if self.divisor != 1:
                wide /= self.divisor
            with np.errstate(over="ignore"):
                self.buffer[held[0] : held[1]] = wide.astype(self.buffer.dtype)
