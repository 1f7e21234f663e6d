"""The contract on the CPU: BLAS through NumPy for matrix products, the C kernels of kernels/cpu for the rest.

Where the C kernels could not be built, or for a dtype they do not know, pure NumPy (numpy_fallback) does the same, slower.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.backend import kernels
from mpidl.backend import numpy_fallback as plain
from mpidl.backend.binder import Binder
from mpidl.backend.contract.conv import check_tiles
from mpidl.backend.ops import Conv2DGeometry, Ops
from mpidl.backend.plain import PLAIN
from mpidl.backend.table import C_KERNELS, KERNELS, ONLY_CUDA
from mpidl.errors import BackendError

NDArr = NDArray[Any]
WINOGRAD_VARIABLE = "MPIDL_WINOGRAD"  # "off": direct convolutions only, slower and more exact
_SUFFIX: dict[np.dtype[Any], str] = {np.dtype(np.float32): "f32", np.dtype(np.float64): "f64"}
# argument kinds (see mpidl.backend.table) as C sees them; every kernel returns 0 or an error code
_C_TYPES = dict.fromkeys("apiuds", ctypes.c_void_p) | {
    "n": ctypes.c_long,
    "r": ctypes.c_double,
    "e": ctypes.c_double,
    "f": ctypes.c_int,
}
_KERNELS = C_KERNELS | {name: kernel for name, kernel in KERNELS.items() if name not in ONLY_CUDA}
_settings: tuple[int, bool] | None = None  # threads and Winograd, as the C library has them now


class NumpyOps(Ops):
    """CPU backend. threads: for the C kernels; use_c=False forces the pure NumPy paths (for tests and for comparison)."""

    name = "numpy"
    xp: Any = np

    def __init__(self, threads: int = 1, *, use_c: bool = True) -> None:
        loaded = kernels.load_library() if use_c else None
        self.level = loaded[1] if loaded else "none"
        self._column_memory = self.workspace()
        self._library = loaded[0] if loaded else None
        self._settings = threads, os.environ.get(WINOGRAD_VARIABLE, "on") != "off"
        self._c: dict[tuple[str, np.dtype[Any]], Any] = {}
        self._binders: dict[tuple[str, np.dtype[Any]], Binder] = {}
        if self._library is not None:
            for name, kernel in _KERNELS.items():
                for dtype, suffix in _SUFFIX.items():
                    function = getattr(self._library, f"mpidl_{name}_{suffix}")
                    function.argtypes, function.restype = (
                        [_C_TYPES[kind] for kind in kernel.arguments],
                        ctypes.c_int,
                    )
                    self._c[name, dtype] = function

    def _run(self, name: str, dtype: np.dtype[Any], *args: Any) -> bool:
        """Check the arguments and call the C kernel; False where there is none for this dtype."""
        binder = self._binders.get((name, dtype))
        if binder is None:
            binder = self._binders[name, dtype] = Binder(name, _KERNELS[name], dtype)
        bound = binder.pointers(args)
        function = self._c.get((name, dtype))
        if function is None:
            return False
        if _settings != self._settings:
            self._configure()
        if function(*bound):
            raise BackendError(f"out of memory in kernel {name}", remedy="lower train.global_batch")
        return True

    def _configure(self) -> None:
        """The C library has one number of threads: that of whoever calls it."""
        global _settings
        assert self._library is not None
        self._library.mpidl_set_threads(self._settings[0])
        self._library.mpidl_set_winograd(self._settings[1])
        _settings = self._settings

    def launch(self, name: str, *args: Any) -> None:
        reals = (
            arg.dtype for arg in args if isinstance(arg, np.ndarray) and arg.dtype.kind in "fV"
        )  # V: bfloat16
        dtype = next(reals, np.dtype(np.float32))
        if not self._run(name, dtype, *args):
            PLAIN[name](*args)

    def to_device(self, host: NDArr) -> NDArr:
        return np.ascontiguousarray(host)

    def to_host(self, array: NDArr) -> NDArr:
        return array

    def synchronize(self) -> None:
        """Nothing to wait for on a CPU."""

    def describe(self) -> str:
        kind = (
            f"C kernels, level {self.level}"
            if self._c
            else "pure NumPy (the C kernels were not built: slower)"
        )
        return f"CPU, NumPy {np.__version__}, {kind}"

    def dense_forward(self, x: NDArr, w: NDArr, b: NDArr | None, out: NDArr, *, relu: bool) -> None:
        self.matmul(x, w, out, b, relu)

    def matmul(
        self,
        a: NDArr,
        b: NDArr,
        out: NDArr,
        bias: NDArr | None = None,
        relu: bool = False,
        *,
        accumulate: bool = False,
    ) -> None:
        """out = act(a @ b + bias) by our own kernel: unlike those of a BLAS its sums do not depend on the rows or threads."""
        if a.shape[1] != b.shape[0] or out.shape != (a.shape[0], b.shape[1]):
            raise BackendError(
                f"cannot multiply {a.shape} by {b.shape} into {out.shape}",
                where="matmul",
                remedy="check the shapes",
            )
        strides = [stride // array.itemsize for array in (a, b, out) for stride in array.strides]
        (a0, a1, b0, b1, c0, c1), (m, k), n = strides, a.shape, b.shape[1]
        if not self._run(
            "gemm", out.dtype, a, a0, a1, b, b0, b1, out, c0, c1, bias, m, n, k, relu, accumulate
        ):
            if accumulate:
                out += a @ b
            else:
                out[...] = a @ b
            plain.bias_act(out, bias, relu)

    def embedding_forward(self, table: NDArr, ids: NDArr, out: NDArr) -> None:
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < len(table):
            raise BackendError(
                f"ids from {int(ids.min())} to {int(ids.max())}, but the table has {len(table)} rows",
                where="embedding",
                remedy="give the layer as many rows as there are tokens",
            )
        super().embedding_forward(table, ids, out)

    def bias_act(self, y: NDArr, bias: NDArr, *, relu: bool) -> None:
        if not self._run("bias_act", y.dtype, y, bias, y.shape[0], y.shape[1], relu):
            plain.bias_act(y, bias, relu)

    def relu_forward(self, x: NDArr, out: NDArr) -> None:
        if not self._run("relu_forward", x.dtype, x, out, x.size):
            np.maximum(x, 0, out=out)

    def relu_backward(self, dy: NDArr, y: NDArr, out: NDArr) -> None:
        if not self._run("relu_backward", y.dtype, dy, y, out, y.size):
            np.multiply(dy, y > 0, out=out)

    def column_sums(self, x: NDArr, out: NDArr) -> None:
        if not self._run("column_sums", x.dtype, x, out, x.shape[0], x.shape[1]):
            x.sum(axis=0, out=out)

    def scale_u8(self, x: NDArr, out: NDArr, scale: float, shift: float) -> None:
        if not self._run("scale_u8", out.dtype, x, out, x.size, scale, shift):
            self.scale_float(x, out, scale, shift)

    def conv2d_forward(
        self,
        x: NDArr,
        w: NDArr,
        b: NDArr | None,
        out: NDArr,
        geometry: Conv2DGeometry,
        *,
        relu: bool,
    ) -> None:
        if _is_product(geometry):
            flat_x, flat_w, rows = (a.reshape(-1, a.shape[-1]) for a in (x, w, out))
            self.matmul(flat_x, flat_w, rows, b, relu)
        elif not self._run("conv2d_forward", x.dtype, x, w, b, out, *_numbers(x, geometry), relu):
            plain.conv2d_forward(x, w, b, out, geometry, relu)

    def conv2d_backward_input(
        self, dy: NDArr, w: NDArr, out: NDArr, geometry: Conv2DGeometry
    ) -> None:
        g = geometry
        if _is_product(g):
            self.matmul(
                dy.reshape(-1, g.out_channels),
                w.reshape(-1, g.out_channels).T,
                out.reshape(-1, g.in_channels),
            )
        elif self._c and (
            g.stride > 1 or g.pad > min(g.kh, g.kw) - 1
        ):  # between the pixels of dy stand zeros: do not multiply them
            self.conv_backward_input(dy, w, out, g.general)
        elif not self._run("conv2d_backward_input", dy.dtype, dy, w, out, *_numbers(dy, g)):
            plain.conv2d_backward_input(dy, w, out, g)

    def conv2d_backward_weights(
        self, x: NDArr, dy: NDArr, dw: NDArr, db: NDArr | None, geometry: Conv2DGeometry
    ) -> None:
        if _is_product(geometry):
            rows = dy.reshape(-1, geometry.out_channels)
            self.matmul(
                x.reshape(-1, geometry.in_channels).T, rows, dw.reshape(-1, geometry.out_channels)
            )
            if db is not None:
                self.column_sums(rows, db)
        elif not self._run(
            "conv2d_backward_weights", x.dtype, x, dy, dw, db, *_numbers(x, geometry)
        ):
            plain.conv2d_backward_weights(x, dy, dw, db, geometry)

    def maxpool2d_forward(self, x: NDArr, out: NDArr, k: int) -> None:
        check_tiles(x, out, k)
        if not self._run("maxpool2d_forward", x.dtype, x, out, *x.shape, k):
            plain.maxpool2d_forward(x, out, k)

    def maxpool2d_backward(
        self, dy: NDArr, x: NDArr, y: NDArr, out: NDArr, k: int, *, relu: bool
    ) -> None:
        check_tiles(x, dy, k)
        check_tiles(x, y, k)
        if not self._run("maxpool2d_backward", x.dtype, dy, x, y, out, *x.shape, k, relu):
            plain.maxpool2d_backward(dy, x, y, out, k, relu)

    def softmax_cross_entropy(
        self,
        logits: NDArr,
        labels: NDArr,
        loss: NDArr,
        dlogits: NDArr,
        hit: NDArr,
        scale: float,
        smoothing: float = 0.0,
    ) -> None:
        if labels.size and int(labels.max()) >= logits.shape[1]:
            raise BackendError(
                f"label {int(labels.max())} does not exist: there are {logits.shape[1]} classes",
                where="softmax_cross_entropy",
                remedy="number the classes from 0, and give the model as many outputs",
            )
        args = (logits, labels, loss, dlogits, hit, *logits.shape, scale, smoothing)
        if not self._run("softmax_cross_entropy", logits.dtype, *args):
            plain.softmax_cross_entropy(logits, labels, loss, dlogits, hit, scale, smoothing)

    def sgd_step(
        self,
        p: NDArr,
        g: NDArr,
        v: NDArr,
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        nesterov: bool,
    ) -> None:
        if not self._run(
            "sgd_step", p.dtype, p, g, v, p.size, lr, momentum, weight_decay, nesterov
        ):
            plain.sgd_step(p, g, v, lr, momentum, weight_decay, nesterov)


def _numbers(batch: NDArr, g: Conv2DGeometry) -> tuple[int, ...]:
    return (
        batch.shape[0],
        g.height,
        g.width,
        g.in_channels,
        g.out_channels,
        g.kh,
        g.kw,
        g.stride,
        g.pad,
        g.out_height,
        g.out_width,
    )


def _is_product(g: Conv2DGeometry) -> bool:
    """Whether the convolution is one matrix product."""
    return g.kh == g.kw == g.stride == 1 and g.pad == 0
