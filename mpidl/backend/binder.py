"""Checks the arguments of a kernel against its line in the table, and turns arrays into the pointers that C takes.

A kernel gets addresses and trusts them: an array of another dtype, a view with gaps or one that is too short would be wrong
numbers or a crash. So every call is checked: by `kernels/python/bind.c`, in about 20 ns an array, or where that could not be
built by the Python code here, which also says what is wrong.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mpidl.backend.contract.base import accumulator
from mpidl.backend.table import ARRAYS, Argument, Kernel
from mpidl.errors import BackendError

try:
    from mpidl._kernels.bind import pointers as _pointers
except ImportError:  # built without Python.h
    _pointers = None

_TYPES: dict[str, np.dtype[Any]] = {
    "i": np.dtype(np.int64),
    "u": np.dtype(np.uint8),
    "d": np.dtype(np.float64),
}
_OPTIONAL, _SIZED, _STRIDED = 1, 2, 4  # flags
_NUMBER = 128  # and above: a factor that is a number, not an argument
_COPY = "copy it with array.copy()"


class Binder:
    """Of one kernel and one dtype."""

    def __init__(self, name: str, kernel: Kernel, real: np.dtype[Any]) -> None:
        self.name, self.kernel = name, kernel
        self.types: dict[str, np.dtype[Any]] = {
            "p": real,
            "s": real,
            "a": accumulator(real),
            **_TYPES,
        }
        self._program = bytes(byte for argument in kernel.parsed for byte in self._encode(argument))

    def _encode(self, argument: Argument) -> list[int]:
        """For bind.c: number of the dtype (255: not an array), flags, number of factors, factors."""
        if argument.kind not in ARRAYS:
            return [255, 0, 0]
        sized, strided = argument.factors is not None, argument.kind == "s"
        flags = _OPTIONAL * argument.optional | _SIZED * sized | _STRIDED * strided
        factors = [factor if factor >= 0 else _NUMBER - factor for factor in argument.factors or ()]
        number = min(
            self.types[argument.kind].num, 254
        )  # bfloat16 has a larger one: left to `check`
        return [number, flags, len(factors), *factors]

    def pointers(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """`args` with the address of its memory for each array. Raises BackendError if one does not fit the table."""
        if _pointers is not None:
            bound: tuple[Any, ...] | None = _pointers(self._program, args)
            if bound is not None:
                return bound
        self.check(args)
        return tuple(arg.ctypes.data if isinstance(arg, np.ndarray) else arg for arg in args)

    def check(self, args: tuple[Any, ...]) -> None:
        """Raise BackendError naming the first argument that does not fit. For arrays of either backend."""
        if len(args) != len(self.kernel.parsed):
            raise self._error(f"takes {len(self.kernel.parsed)} arguments, got {len(args)}", "")
        for argument, arg in zip(self.kernel.parsed, args, strict=True):
            if argument.kind not in ARRAYS:
                continue
            if arg is None and argument.optional:
                continue
            if not hasattr(arg, "dtype") or not hasattr(arg, "flags"):
                raise self._error(
                    f"takes an array as {argument.name!r}, got {type(arg).__name__}",
                    "pass an array",
                )
            wanted = self.types[argument.kind]
            if arg.dtype != wanted:
                remedy = "all arrays of a model have its dtype: convert with array.astype(...)"
                raise self._error(f"takes {wanted} as {argument.name!r}, got {arg.dtype}", remedy)
            if not getattr(arg.flags, "aligned", True):  # CuPy's always are
                raise self._error(
                    f"takes an aligned array as {argument.name!r}, got a field of records or odd bytes",
                    _COPY,
                )
            if argument.kind != "s" and not arg.flags.c_contiguous:
                raise self._error(
                    f"takes a C-contiguous array as {argument.name!r}, got one of shape {arg.shape}, strides {arg.strides}",
                    _COPY,
                )
            self._check_size(argument, arg, args)

    def _check_size(self, argument: Argument, arg: Any, args: tuple[Any, ...]) -> None:
        if argument.factors is None:
            return
        count = math.prod(
            int(args[factor]) if factor >= 0 else -factor for factor in argument.factors
        )
        if arg.size != count:
            names = [
                self.kernel.parsed[factor].name if factor >= 0 else str(-factor)
                for factor in argument.factors
            ]
            raise self._error(
                f"takes {count} elements ({' x '.join(names)}) as {argument.name!r}, got {arg.size} of shape {arg.shape}",
                "check the shapes that go into the operation",
            )

    def _error(self, what: str, remedy: str) -> BackendError:
        return BackendError(f"the kernel {what}", where=f"kernel {self.name}", remedy=remedy)
