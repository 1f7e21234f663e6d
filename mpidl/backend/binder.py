"""Checks the arguments of a kernel by its line of the table, and takes the pointers that C needs.

A kernel gets addresses and trusts them: an array of another dtype, a view with gaps or one that is
too short would be wrong numbers or a crash. So every call is checked: by `kernels/python/bind.c`,
in
about 20 ns an array, or where that could not be built by the Python code here, which also says what
is wrong.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mpidl.backend.contract.base import accumulator
from mpidl.backend.headers import structs
from mpidl.backend.signature import Argument, Kernel
from mpidl.errors import BackendError

try:
    from mpidl._kernels.bind import pointers as _pointers
except ImportError:  # built without Python.h
    _pointers = None

# Flags and codes of bind.c
_OPTIONAL, _SIZED, _STRIDED = 1, 2, 4
_FIELD, _NUMBER, _RECORD, _OTHER, _PLAIN = 64, 128, 253, 254, 255
_COPY = "copy it with array.copy()"


class Binder:
    """Checks and binds the arguments of one kernel for one dtype.

    Args:
        name: The kernel.
        kernel: Its line of the table.
        real: The dtype that it is compiled for.
    """

    def __init__(self, name: str, kernel: Kernel, real: np.dtype[Any]) -> None:
        self.name = name
        self.kernel = kernel
        self.types = [_dtype(argument, real) for argument in kernel.arguments]
        record = 255 if kernel.struct_position is None else kernel.struct_position
        entries = (
            byte
            for argument, dtype in zip(kernel.arguments, self.types, strict=True)
            for byte in self._encode(argument, dtype)
        )
        self._program = bytes([record, *entries])

    def _encode(self, argument: Argument, dtype: np.dtype[Any] | None) -> list[int]:
        """An entry of a program of bind.c."""
        if argument.is_struct:
            return [_RECORD, 0, 1, len(structs()[argument.kind].names or ())]
        if dtype is None:
            return [_PLAIN, 0, 0]
        flags = _OPTIONAL * argument.optional
        flags |= _SIZED * (argument.factors is not None)
        flags |= _STRIDED * (argument.kind == "view")
        factors = [self._encode_factor(factor) for factor in argument.factors or ()]
        # bfloat16 has a number beyond a byte: left to `check`
        return [min(dtype.num, _OTHER), flags, len(factors), *factors]

    def _encode_factor(self, factor: str | int) -> int:
        if isinstance(factor, int):
            return _NUMBER + factor
        name, _, field = factor.partition(".")
        position = self.kernel.position[name]
        if not field:
            return position
        names = structs()[self.kernel.arguments[position].kind].names or ()
        return _FIELD + names.index(field)

    def pointers(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """`args` with the address of its memory for each array.

        Raises:
            BackendError: An argument does not fit the table.
        """
        if _pointers is not None:
            bound: tuple[Any, ...] | None = _pointers(self._program, args)
            if bound is not None:
                return bound
        self.check(args)
        return tuple(arg.ctypes.data if isinstance(arg, np.ndarray) else arg for arg in args)

    def check(self, args: tuple[Any, ...]) -> None:
        """Raise BackendError naming the first argument that does not fit; for either backend."""
        if len(args) != len(self.types):
            raise self._error(f"takes {len(self.types)} arguments, got {len(args)}", "")
        record = self.kernel.struct_position
        if record is not None:  # first: the sizes of arrays are read from it
            self._check_record(self.kernel.arguments[record], args[record])
        for argument, dtype, arg in zip(self.kernel.arguments, self.types, args, strict=True):
            if dtype is not None and not (arg is None and argument.optional):
                self._check_array(argument, dtype, arg)
                self._check_size(argument, arg, args)

    def _check_record(self, argument: Argument, arg: Any) -> None:
        if not isinstance(arg, np.ndarray) or arg.dtype != structs()[argument.kind] or arg.ndim:
            raise self._error(
                f"takes a {argument.kind} as {argument.name!r}, got {type(arg).__name__}",
                "pass the record of a geometry",
            )

    def _check_array(self, argument: Argument, dtype: np.dtype[Any], arg: Any) -> None:
        name = argument.name
        if not hasattr(arg, "dtype") or not hasattr(arg, "flags"):
            raise self._error(
                f"takes an array as {name!r}, got {type(arg).__name__}", "pass an array"
            )
        if arg.dtype != dtype:
            remedy = "all arrays of a model have its dtype: convert with array.astype(...)"
            raise self._error(f"takes {dtype} as {name!r}, got {arg.dtype}", remedy)
        if not getattr(arg.flags, "aligned", True):  # CuPy's always are
            raise self._error(
                f"takes an aligned array as {name!r}, got a field of records or odd bytes", _COPY
            )
        if argument.kind != "view" and not arg.flags.c_contiguous:
            raise self._error(
                f"takes a C-contiguous array as {name!r}, got one of shape {arg.shape}, "
                f"strides {arg.strides}",
                _COPY,
            )

    def _check_size(self, argument: Argument, arg: Any, args: tuple[Any, ...]) -> None:
        if argument.factors is None:
            return
        count = math.prod(
            factor if isinstance(factor, int) else self.kernel.size(factor, args)
            for factor in argument.factors
        )
        if arg.size != count:
            names = " x ".join(str(factor) for factor in argument.factors)
            raise self._error(
                f"takes {count} elements ({names}) as {argument.name!r}, "
                f"got {arg.size} of shape {arg.shape}",
                "check the shapes that go into the operation",
            )

    def _error(self, what: str, remedy: str) -> BackendError:
        return BackendError(f"the kernel {what}", where=f"kernel {self.name}", remedy=remedy)


def _dtype(argument: Argument, real: np.dtype[Any]) -> np.dtype[Any] | None:
    """The dtype that an argument must have; None for numbers and records."""
    if not argument.is_array:
        return None
    if argument.kind in ("real", "view"):
        return real
    return accumulator(real) if argument.kind == "acc" else np.dtype(argument.kind)
