"""Launches the kernels of kernels/cuda by their lines of the table."""

from __future__ import annotations

import math
from typing import Any

import cupy as cp
import ml_dtypes
import numpy as np

from mpidl.backend import kernels
from mpidl.backend.binder import Binder
from mpidl.backend.contract.base import accumulator
from mpidl.backend.signature import Argument, Kernel
from mpidl.backend.table import KERNELS
from mpidl.errors import BackendError

BLOCK = 256
MAX_BLOCKS = 65535
REAL = {
    np.dtype(np.float32): "float",
    np.dtype(np.float64): "double",
    np.dtype(np.float16): "f16",
    np.dtype(ml_dtypes.bfloat16): "bf16",
}
_FLOAT32 = np.dtype(np.float32)
_NUMBERS: dict[str, Any] = {"size": np.int64, "double": np.float64, "code": np.int32}


class KernelLauncher:
    """Compiles kernels at first use, checks and converts their arguments, and starts them."""

    def __init__(self) -> None:
        self._modules: dict[tuple[str, np.dtype[Any]], Any] = {}
        self._binders: dict[tuple[str, Any], Binder] = {}

    def __call__(self, name: str, *args: Any) -> None:
        """Launch kernel `name` with its arguments in the order of the table."""
        kernel = KERNELS[name]
        for part in kernel.passes:
            self(
                part,
                *(args[kernel.position[argument.name]] for argument in KERNELS[part].arguments),
            )
        if kernel.passes:
            return
        position = kernel.real_position
        dtype = _FLOAT32 if position is None else getattr(args[position], "dtype", _FLOAT32)
        binder = self._binders.get((name, dtype))
        if binder is None:
            binder = self._binders[name, dtype] = Binder(name, kernel, dtype)
        binder.check(args)
        grid, block = cover(kernel, args)
        if all(grid):
            number = accumulator(dtype).type
            passed = tuple(
                _convert(argument, arg, number)
                for argument, arg in zip(kernel.arguments, args, strict=True)
            )
            self._function(kernel.family, name, dtype)(grid, block, passed)

    def _function(self, family: str, name: str, dtype: np.dtype[Any]) -> Any:
        if dtype not in REAL:
            known = ", ".join(str(known) for known in REAL)
            raise BackendError(
                f"no CUDA kernels for dtype {dtype}", where=name, remedy=f"use one of {known}"
            )
        key = (family, dtype)
        if key not in self._modules:
            defined = (f"-DREAL={REAL[dtype]}", f"-DACC={REAL[accumulator(dtype)]}")
            options = ("--std=c++17", *defined)
            self._modules[key] = cp.RawModule(code=kernels.cuda_source(family), options=options)
        return self._modules[key].get_function(name)


def _convert(argument: Argument, arg: Any, number: Any) -> Any:
    """An argument as CuPy passes it: arrays as pointers, records and numbers by value."""
    if arg is None:
        return np.uint64(0)
    if argument.is_array:
        return arg
    if argument.is_struct:
        return arg[()]
    return number(arg) if argument.kind == "number" else _NUMBERS[argument.kind](arg)


def cover(kernel: Kernel, args: tuple[Any, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Grid and block of a launch; a grid of 0 where there is nothing to do."""
    assert kernel.cover is not None, "the table has no CUDA kernel of this name"
    shape = kernel.cover.shape
    sizes = [kernel.size(name, args) for name in kernel.cover.sizes]
    count = math.prod(sizes)
    if shape == "each":
        return (min(-(-count // BLOCK), MAX_BLOCKS),), (BLOCK,)
    if shape == "blocks":
        return (min(count, MAX_BLOCKS),), (BLOCK,)
    if shape == "warps":
        return (min(-(-count // 8), MAX_BLOCKS),), (32, 8)
    if shape == "groups":
        return (min(math.prod(sizes[:-1]) * -(-sizes[-1] // 8), MAX_BLOCKS),), (32, 8)
    segments = min(sizes[1], MAX_BLOCKS) if len(sizes) > 1 else 1
    return (-(-sizes[0] // 32), segments), (32, 8)
