"""A CuPy over NumPy memory whose RawModule is the host harness: drives `cupy_ops` end to end
without a GPU.

Device arrays are a subclass of ndarray that refuses to mix with host arrays, as CuPy does, so that
a forgotten transfer fails.
"""

from __future__ import annotations

import ctypes
import sys
import types
from contextlib import nullcontext
from typing import Any

import ml_dtypes
import numpy as np

from tests.standin.harness import HostModule, Recorder


class DeviceArray(np.ndarray):
    """NumPy memory that behaves like device memory towards host arrays."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.ctypes.data, False),
            "version": 3,
        }

    @property
    def device(self) -> Any:
        return _Device()

    @property
    def data(self) -> Any:
        return types.SimpleNamespace(ptr=self.ctypes.data)

    def get(self, out: Any = None, stream: Any = None, blocking: bool = True) -> Any:
        if stream is not None and not blocking:
            source = self.view(np.ndarray)
            stream.later(lambda: out.__setitem__(..., source))
            return out
        assert Recorder.active is None, "a copy to the host while a stream is captured"
        if out is None:
            return np.array(self.view(np.ndarray))
        out[...] = self.view(np.ndarray)
        return out

    def set(self, host: Any, stream: Any = None) -> None:
        assert type(host) is np.ndarray
        if stream is not None:
            stream.later(lambda: self.view(np.ndarray).__setitem__(..., host))
            return
        self.view(np.ndarray)[...] = host

    def __array_ufunc__(
        self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kwargs: Any
    ) -> Any:
        for value in (*inputs, *(out or ())):
            if type(value) is np.ndarray and value.ndim:
                raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        plain = [_plain(value) for value in inputs]
        if out is not None:
            kwargs["out"] = tuple(_plain(value) for value in out)
            Recorder.run(lambda: getattr(ufunc, method)(*plain, **kwargs))
            return out[0]
        assert Recorder.active is None, "the stand-in cannot capture what makes new arrays"
        return _device(getattr(ufunc, method)(*plain, **kwargs))

    def __setitem__(self, key: Any, value: Any) -> None:
        if type(value) is np.ndarray and value.ndim:
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        target = super().__getitem__(key) if Recorder.active is not None else None
        if target is None:
            super().__setitem__(key, value)
            return
        Recorder.run(lambda: target.view(np.ndarray).__setitem__(..., _plain(value)))


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, DeviceArray) else value


def _device(value: Any) -> Any:
    return np.asarray(value).view(DeviceArray)


class _Device:
    id = 0

    def __init__(self, number: int = 0) -> None:
        assert number == 0

    def use(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


class _Stream:
    """Copies happen as late as the program allows: at a synchronization. So a missing one shows."""

    def __init__(self, non_blocking: bool = False) -> None:
        self._copies: list[Any] = []

    def later(self, copy: Any) -> None:
        self._copies.append(copy)

    def record(self) -> Any:
        mark = len(self._copies)
        return types.SimpleNamespace(synchronize=lambda: self._run(mark))

    def wait_event(self, event: Any) -> None:
        event.synchronize()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: Any) -> None:
        assert Recorder.active is None, "a capture was not ended"

    def begin_capture(self) -> None:
        Recorder.active = []

    def end_capture(self) -> Any:
        works, Recorder.active = Recorder.active or [], None
        return types.SimpleNamespace(launch=lambda: [work() for work in works], works=works)

    def synchronize(self) -> None:
        self._run(len(self._copies))

    def _run(self, mark: int) -> None:
        for index in range(mark):
            copy, self._copies[index] = self._copies[index], lambda: None
            copy()


_TYPES = {
    0: np.dtype(np.float32),
    1: np.dtype(np.float64),
    2: np.dtype(np.float16),
    14: np.dtype(ml_dtypes.bfloat16),
}


def _column_major(pointer: int, kind: int, rows: int, cols: int, distance: int) -> Any:
    """The matrix at an address, as cuBLAS reads it."""
    assert distance >= max(1, rows), f"leading dimension {distance} of a matrix with {rows} rows"
    size = _TYPES[kind].itemsize
    memory = (ctypes.c_char * (((cols - 1) * distance + rows) * size)).from_address(pointer)
    return np.ndarray((rows, cols), _TYPES[kind], memory, strides=(size, distance * size))


def _scalar(pointer: int, compute: int) -> float:
    return float((ctypes.c_double if compute == 70 else ctypes.c_float).from_address(pointer).value)


def _gemm_ex(
    handle: Any, ta: int, tb: int, m: int, n: int, k: int, alpha: int, a: int, a_kind: int, lda:
    int, b: int, b_kind: int,
    ldb: int, beta: int, c: int, c_kind: int, ldc: int, compute: int, algorithm: int,
) -> None:  # fmt: skip
    exact = np.float64 if compute == 70 else np.float32
    left = _column_major(a, a_kind, k, m, lda).T if ta else _column_major(a, a_kind, m, k, lda)
    right = _column_major(b, b_kind, n, k, ldb).T if tb else _column_major(b, b_kind, k, n, ldb)
    out = _column_major(c, c_kind, m, n, ldc)
    first, factor = _scalar(alpha, compute), _scalar(beta, compute)

    def work() -> None:
        product = first * (left.astype(exact) @ right.astype(exact))
        out[...] = product if factor == 0 else product + factor * out.astype(exact)

    Recorder.run(work)


_CUBLAS = types.SimpleNamespace(
    gemmEx=_gemm_ex,
    CUBLAS_COMPUTE_32F=68,
    CUBLAS_COMPUTE_64F=70,
    CUBLAS_OP_N=0,
    CUBLAS_OP_T=1,
    CUBLAS_GEMM_DEFAULT=-1,
)


def _count_nonzero(array: Any) -> Any:
    return _device(np.count_nonzero(_plain(array)))


def _wrapped(function: Any) -> Any:
    def call(first: Any, *args: Any, **kwargs: Any) -> Any:
        whole = (
            tuple(_plain(value) for value in first) if isinstance(first, tuple) else _plain(first)
        )
        return _device(function(whole, *(_plain(value) for value in args), **kwargs))

    return call


def _cuda_module() -> types.ModuleType:
    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: 1, getDeviceProperties=lambda i: {"name": b"stand-in"}
    )
    cuda = types.ModuleType("cupy.cuda")
    device = types.SimpleNamespace(get_cublas_handle=lambda: 0)
    pool = {
        "MemoryPool": lambda: types.SimpleNamespace(malloc=None),
        "using_allocator": lambda malloc: nullcontext(),
    }
    parts = {
        "Device": _Device,
        "runtime": runtime,
        "Stream": _Stream,
        "get_current_stream": _Stream,
    } | pool
    for name, part in (parts | {"device": device, "cublas": _CUBLAS}).items():
        setattr(cuda, name, part)
    return cuda


def make() -> tuple[types.ModuleType, types.ModuleType]:
    """The modules `cupy` and `cupyx`."""
    cupy, cupyx = types.ModuleType("cupy"), types.ModuleType("cupyx")
    made = (
        "empty",
        "zeros",
        "empty_like",
        "zeros_like",
        "ones_like",
        "repeat",
        "ascontiguousarray",
        "arange",
        "broadcast_to",
        "where",
    )
    for name in (*made, "concatenate"):
        setattr(cupy, name, _wrapped(getattr(np, name)))
    for name in ("matmul", "multiply", "add", "subtract", "isfinite", "sqrt", "abs"):
        setattr(cupy, name, getattr(np, name))
    fft = {name: _wrapped(getattr(np.fft, name)) for name in ("rfftn", "irfftn")}
    cupy.fft = types.SimpleNamespace(**fft)  # type: ignore[attr-defined]
    values = {
        "__version__": "14.0.0+stand.in",
        "ndarray": DeviceArray,
        "asarray": lambda host, dtype=None: _device(np.array(_plain(host), dtype)),
        "asnumpy": lambda array: np.array(_plain(array)),
        "count_nonzero": _count_nonzero,
        "RawModule": HostModule,
        "cuda": _cuda_module(),
    }
    for name, value in values.items():
        setattr(cupy, name, value)
    cupyx.empty_pinned = lambda shape, dtype: np.empty(shape, dtype)  # type: ignore[attr-defined]
    return cupy, cupyx


def install() -> None:
    """Put the stand-in where `import cupy` finds it."""
    sys.modules["cupy"], sys.modules["cupyx"] = make()
    sys.modules["cupy.cuda"] = sys.modules["cupy"].cuda
