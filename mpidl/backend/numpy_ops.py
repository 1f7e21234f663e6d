"""The contract on the CPU: the C kernels of kernels/cpu.

Where the C kernels could not be built, or for a dtype they do not know, plain NumPy
(`mpidl.backend.plain`) does the same, slower.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl import settings
from mpidl.backend import kernels
from mpidl.backend.array import Array
from mpidl.backend.binder import Binder
from mpidl.backend.contract.conv import ConvGeometry
from mpidl.backend.ops import Ops
from mpidl.backend.plain import PLAIN
from mpidl.backend.signature import Argument, C
from mpidl.backend.table import KERNELS
from mpidl.errors import BackendError

NDArr = NDArray[Any]
_SUFFIX: dict[np.dtype[Any], str] = {np.dtype(np.float32): "f32", np.dtype(np.float64): "f64"}
_FLOAT32 = np.dtype(np.float32)
_C_NUMBERS = {
    "size": ctypes.c_long,
    "number": ctypes.c_double,
    "double": ctypes.c_double,
    "code": ctypes.c_int,
}
_settings: tuple[int, bool] | None = None  # threads and Winograd, as the C library has them now


class NumpyOps(Ops):
    """CPU backend.

    Args:
        threads: For the C kernels. None: leave the number alone, for kernels that use no threads
            and run beside others.
        use_c: False: plain NumPy only, for tests and for comparison.
    """

    name = "numpy"
    xp: Any = np

    def __init__(self, threads: int | None = 1, *, use_c: bool = True) -> None:
        loaded = kernels.load_library() if use_c else None
        self.level = loaded[1] if loaded else "none"
        self._library = loaded[0] if loaded else None
        self._column_memory = self.workspace()
        self._settings: tuple[int, bool] | None = None
        if threads is not None:
            self._settings = threads, settings.WINOGRAD.value != "off"
        self._bound: dict[tuple[str, np.dtype[Any]], tuple[Binder, Any]] = {}

    def _bind(self, name: str, dtype: np.dtype[Any]) -> tuple[Binder, Any]:
        """The checks of a kernel for a dtype, and its C function, or None."""
        kernel = KERNELS[name]
        function = None
        if self._library is not None and C in kernel.backends and dtype in _SUFFIX:
            function = getattr(self._library, f"mpidl_{name}_{_SUFFIX[dtype]}")
            function.argtypes = [_c_type(argument) for argument in kernel.arguments]
            function.restype = ctypes.c_int
        bound = self._bound[name, dtype] = Binder(name, kernel, dtype), function
        return bound

    def launch(self, name: str, *args: Any) -> None:
        position = KERNELS[name].real_position
        dtype = _FLOAT32 if position is None else getattr(args[position], "dtype", _FLOAT32)
        if not self._run(name, dtype, args):
            PLAIN[name](*args)

    def _run(self, name: str, dtype: np.dtype[Any], args: tuple[Any, ...]) -> bool:
        """Check the arguments and call the C kernel; False where there is none for this dtype."""
        binder, function = self._bound.get((name, dtype)) or self._bind(name, dtype)
        bound = binder.pointers(args)
        if function is None:
            return False
        if self._settings is not None and _settings != self._settings:
            self._configure()
        if function(*bound):
            raise BackendError(f"out of memory in kernel {name}", remedy="lower train.global_batch")
        return True

    def _configure(self) -> None:
        """The C library has one number of threads: that of whoever calls it."""
        global _settings
        assert self._library is not None and self._settings is not None
        self._library.mpidl_set_threads(self._settings[0])
        self._library.mpidl_set_winograd(self._settings[1])
        _settings = self._settings

    def to_device(self, host: NDArr) -> NDArr:
        return np.ascontiguousarray(host)

    def to_host(self, array: Array) -> NDArr:
        return np.asarray(array)

    def synchronize(self) -> None:
        """Nothing to wait for on a CPU."""

    def describe(self) -> str:
        kind = f"C kernels, level {self.level}"
        if self._library is None:
            kind = "pure NumPy (the C kernels were not built: slower)"
        return f"CPU, NumPy {np.__version__}, {kind}"

    def matmul(
        self,
        a: Array,
        b: Array,
        out: Array,
        bias: Array | None = None,
        *,
        relu: bool = False,
        accumulate: bool = False,
    ) -> None:
        """By a kernel of our own: unlike a BLAS its sums do not depend on the rows or threads."""
        (m, k), n = a.shape, b.shape[1]
        if b.shape[0] != k or out.shape != (m, n):
            raise BackendError(
                f"cannot multiply {a.shape} by {b.shape} into {out.shape}",
                where="matmul",
                remedy="check the shapes",
            )
        # One list for all strides: of small products a quarter is the way to C
        strides = [stride // array.itemsize for array in (a, b, out) for stride in array.strides]
        a0, a1, b0, b1, c0, c1 = strides
        args = (a, a0, a1, b, b0, b1, out, c0, c1, bias, m, n, k, relu, accumulate)
        if self._run("gemm", out.dtype, args):
            return
        if accumulate:
            out += a @ b
        else:
            out[...] = a @ b
        if bias is not None:
            out += bias
        if relu:
            result = self.to_host(out)
            np.maximum(result, 0, out=result)

    def conv_forward(
        self,
        x: Array,
        w: Array,
        b: Array | None,
        out: Array,
        g: ConvGeometry,
        *,
        relu: bool = False,
    ) -> None:
        if g.is_product:
            self.matmul(_flat(x), _flat(w), _flat(out), b, relu=relu)
        elif g.is_direct:
            self.launch("conv2d_forward", x, w, b, out, g.record(len(x)), int(relu))
        else:
            super().conv_forward(x, w, b, out, g, relu=relu)

    def conv_backward_input(self, dy: Array, w: Array, out: Array, g: ConvGeometry) -> None:
        # With a stride zeros stand between the pixels of dy: columns do not multiply them
        dense = g.stride[2] == 1 and g.pad[2] < min(g.kernel[1:])
        if g.is_product:
            self.matmul(_flat(dy), _flat(w).T, _flat(out))
        elif g.is_direct and dense:
            self.launch("conv2d_backward_input", dy, w, out, g.record(len(dy)))
        else:
            super().conv_backward_input(dy, w, out, g)

    def conv_backward_weights(
        self, x: Array, dy: Array, dw: Array, db: Array | None, g: ConvGeometry
    ) -> None:
        if g.is_product:
            self.matmul(_flat(x).T, _flat(dy), _flat(dw))
            if db is not None:
                self.column_sums(_flat(dy), db)
        elif g.is_direct:
            self.launch("conv2d_backward_weights", x, dy, dw, db, g.record(len(x)))
        else:
            super().conv_backward_weights(x, dy, dw, db, g)

    def embedding_forward(self, table: Array, ids: Array, out: Array) -> None:
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < len(table):
            raise BackendError(
                f"ids from {int(ids.min())} to {int(ids.max())}, "
                f"but the table has {len(table)} rows",
                where="embedding",
                remedy="give the layer as many rows as there are tokens",
            )
        super().embedding_forward(table, ids, out)

    def softmax_cross_entropy(
        self,
        logits: Array,
        labels: Array,
        loss: Array,
        dlogits: Array,
        hit: Array,
        scale: float,
        smoothing: float = 0.0,
    ) -> None:
        if labels.size and int(labels.max()) >= logits.shape[1]:
            raise BackendError(
                f"label {int(labels.max())} does not exist: there are {logits.shape[1]} classes",
                where="softmax_cross_entropy",
                remedy="number the classes from 0, and give the model as many outputs",
            )
        super().softmax_cross_entropy(logits, labels, loss, dlogits, hit, scale, smoothing)


def _c_type(argument: Argument) -> Any:
    """How C sees an argument; every kernel returns 0 or an error code."""
    return _C_NUMBERS.get(argument.kind, ctypes.c_void_p)


def _flat(x: Array) -> Array:
    """(rows, channels)."""
    return x.reshape(-1, x.shape[-1])
