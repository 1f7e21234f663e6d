"""A CuPy over NumPy memory whose RawModule is the host harness: drives `cupy_ops` end to end without a GPU.

Device arrays are a subclass of ndarray that refuses to mix with host arrays, as CuPy does, so that a forgotten transfer fails.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np

from tests.standin.harness import HostModule


class DeviceArray(np.ndarray):
    """NumPy memory that behaves like device memory towards host arrays."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.ctypes.data, False), "version": 3}

    def get(self, out: Any = None, stream: Any = None, blocking: bool = True) -> Any:
        if stream is not None and not blocking:
            source = self.view(np.ndarray)
            stream.later(lambda: out.__setitem__(..., source))
            return out
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

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        for value in (*inputs, *(out or ())):
            if type(value) is np.ndarray and value.ndim:
                raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        plain = [_plain(value) for value in inputs]
        if out is not None:
            kwargs["out"] = tuple(_plain(value) for value in out)
        result = getattr(ufunc, method)(*plain, **kwargs)
        return out[0] if out is not None else _device(result)

    def __setitem__(self, key: Any, value: Any) -> None:
        if type(value) is np.ndarray and value.ndim:
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        super().__setitem__(key, value)


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, DeviceArray) else value


def _device(value: Any) -> Any:
    return np.asarray(value).view(DeviceArray)


class _Device:
    def __init__(self, number: int = 0) -> None:
        assert number == 0

    def use(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


class _Stream:
    """Copies happen as late as the program allows: at a synchronisation. So a missing one shows."""

    def __init__(self, non_blocking: bool = False) -> None:
        self._copies: list[Any] = []

    def later(self, copy: Any) -> None:
        self._copies.append(copy)

    def record(self) -> Any:
        mark = len(self._copies)
        return types.SimpleNamespace(synchronize=lambda: self._run(mark))

    def synchronize(self) -> None:
        self._run(len(self._copies))

    def _run(self, mark: int) -> None:
        for index in range(mark):
            copy, self._copies[index] = self._copies[index], lambda: None
            copy()


def _count_nonzero(array: Any) -> Any:
    return _device(np.count_nonzero(_plain(array)))


def _wrapped(function: Any) -> Any:
    def call(first: Any, *args: Any, **kwargs: Any) -> Any:
        whole = tuple(_plain(value) for value in first) if isinstance(first, tuple) else _plain(first)
        return _device(function(whole, *(_plain(value) for value in args), **kwargs))

    return call


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
    runtime = types.SimpleNamespace(getDeviceCount=lambda: 1, getDeviceProperties=lambda i: {"name": b"stand-in"})
    values = {
        "__version__": "stand-in",
        "ndarray": DeviceArray,
        "asarray": lambda host, dtype=None: _device(np.array(_plain(host), dtype)),
        "asnumpy": lambda array: np.array(_plain(array)),
        "count_nonzero": _count_nonzero,
        "RawModule": HostModule,
        "cuda": types.SimpleNamespace(Device=_Device, runtime=runtime, Stream=_Stream, get_current_stream=_Stream),
    }
    for name, value in values.items():
        setattr(cupy, name, value)
    cupyx.empty_pinned = lambda shape, dtype: np.empty(shape, dtype)  # type: ignore[attr-defined]
    return cupy, cupyx


def install() -> None:
    """Put the stand-in where `import cupy` finds it."""
    sys.modules["cupy"], sys.modules["cupyx"] = make()
