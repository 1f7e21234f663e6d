"""Matrix products by cuBLAS."""

from __future__ import annotations

from typing import Any

import cupy as cp
import numpy as np
from cupy.cuda import cublas

from mpidl.backend.array import Array
from mpidl.backend.contract.base import accumulator
from mpidl.backend.cuda.launch import REAL

_CUDA_TYPE = {"float": 0, "double": 1, "f16": 2, "bf16": 14}  # cudaDataType


def gemm(a: Array, b: Array, out: Array, accumulate: bool) -> None:
    """out = a @ b, or out += a @ b.

    By cublasGemmEx, which reads views as they are, adds to `out` in place, and sums 16-bit numbers
    in float32.
    """
    if not out.size:
        return
    if not a.shape[1]:
        if not accumulate:
            out[...] = 0
        return
    if _leading(out)[0] == "N":
        _gemm_ex(a, b, out, accumulate)
        return
    held: Array = cp.ascontiguousarray(out)
    _gemm_ex(a, b, held, accumulate)
    out[...] = held


def _gemm_ex(a: Array, b: Array, out: Any, accumulate: bool) -> None:
    """Row-major out = a @ b, as column-major out.T = b.T @ a.T."""
    left, how_left, ld_left = _operand(b)
    right, how_right, ld_right = _operand(a)
    real = accumulator(out.dtype)
    one = np.ones(1, real)
    beta = np.full(1, int(accumulate), real)
    kinds = [_CUDA_TYPE[REAL[array.dtype]] for array in (left, right, out)]
    compute = cublas.CUBLAS_COMPUTE_64F if real == np.float64 else cublas.CUBLAS_COMPUTE_32F
    operation = {"N": cublas.CUBLAS_OP_N, "T": cublas.CUBLAS_OP_T}
    cublas.gemmEx(
        cp.cuda.device.get_cublas_handle(),
        *(operation[how_left], operation[how_right]),
        *(out.shape[1], out.shape[0], a.shape[1]),
        *(one.ctypes.data, left.data.ptr, kinds[0], ld_left),
        *(right.data.ptr, kinds[1], ld_right),
        *(beta.ctypes.data, out.data.ptr, kinds[2], _operand(out)[2]),
        *(compute, cublas.CUBLAS_GEMM_DEFAULT),
    )


def _leading(array: Array) -> tuple[str, int]:
    """How cuBLAS can read a row-major matrix without a copy.

    Returns:
        "N": as its transpose, "T": as itself, "": it cannot; and the distance between its rows or
        columns in elements.
    """
    (rows, cols), (down, across), item = array.shape, array.strides, array.itemsize
    if cols == 1 or across == item:
        distance = down // item if rows > 1 else cols
        if distance >= cols:
            return "N", distance
    if rows == 1 or down == item:
        distance = across // item if cols > 1 else rows
        if distance >= rows:
            return "T", distance
    return "", 0


def _operand(array: Array) -> tuple[Any, str, int]:
    how, distance = _leading(array)
    if not how:
        array = cp.ascontiguousarray(array)
        how, distance = _leading(array)
    return array, how, distance
