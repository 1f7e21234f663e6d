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
from mpidl.backend.ops import Conv2DGeometry, Ops
from mpidl.backend.plain import PLAIN
from mpidl.backend.table import KERNELS, ONLY_CUDA
from mpidl.errors import BackendError

NDArr = NDArray[Any]
WINOGRAD_VARIABLE = "MPIDL_WINOGRAD"  # "off": direct convolutions only, slower and more exact
_SUFFIX: dict[np.dtype[Any], str] = {np.dtype(np.float32): "f32", np.dtype(np.float64): "f64"}
_VOID, _LONG, _DOUBLE, _INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_double, ctypes.c_int
# name -> argument types; every kernel returns 0 or an error code
_SIGNATURES: dict[str, list[Any]] = {
    "bias_act": [_VOID] * 2 + [_LONG] * 2 + [_INT],
    "relu_forward": [_VOID] * 2 + [_LONG],
    "relu_backward": [_VOID] * 3 + [_LONG],
    "column_sums": [_VOID] * 2 + [_LONG] * 2,
    "scale_u8": [_VOID] * 2 + [_LONG] + [_DOUBLE] * 2,
    "conv2d_forward": [_VOID] * 4 + [_LONG] * 11 + [_INT],
    "conv2d_backward_input": [_VOID] * 3 + [_LONG] * 11,
    "conv2d_backward_weights": [_VOID] * 4 + [_LONG] * 11,
    "maxpool2d_forward": [_VOID] * 2 + [_LONG] * 5,
    "maxpool2d_backward": [_VOID] * 4 + [_LONG] * 5 + [_INT],
    "softmax_cross_entropy": [_VOID] * 5 + [_LONG] * 2 + [_DOUBLE] * 2,
    "gemm": [_VOID] + [_LONG] * 2 + [_VOID] + [_LONG] * 2 + [_VOID] + [_LONG] * 2 + [_VOID] + [_LONG] * 3 + [_INT] * 2,
    "sgd_step": [_VOID] * 3 + [_LONG] + [_DOUBLE] * 3 + [_INT],
}
_LETTERS = dict.fromkeys("apiuds", _VOID) | {"n": _LONG, "r": _DOUBLE, "e": _DOUBLE, "f": _INT}
_SIGNATURES |= {
    name: [_LETTERS[letter] for letter in kernel.arguments] for name, kernel in KERNELS.items() if name not in ONLY_CUDA
}


class NumpyOps(Ops):
    """CPU backend. threads: for the C kernels; use_c=False forces the pure NumPy paths (for tests and for comparison)."""

    name = "numpy"
    xp: Any = np

    def __init__(self, threads: int = 1, *, use_c: bool = True) -> None:
        loaded = kernels.load_library() if use_c else None
        self.level = loaded[1] if loaded else "none"
        self._column_memory = self.workspace()
        self._c: dict[tuple[str, np.dtype[Any]], Any] = {}
        if loaded:
            loaded[0].mpidl_set_threads(threads)
            loaded[0].mpidl_set_winograd(os.environ.get(WINOGRAD_VARIABLE, "on") != "off")
            for name, types in _SIGNATURES.items():
                for dtype, suffix in _SUFFIX.items():
                    function = getattr(loaded[0], f"mpidl_{name}_{suffix}")
                    function.argtypes, function.restype = types, _INT
                    self._c[name, dtype] = function

    def _run(self, name: str, dtype: np.dtype[Any], *args: Any) -> bool:
        """Call the C kernel; False where there is none for this dtype."""
        function = self._c.get((name, dtype))
        if function is None:
            return False
        if function(*[arg.ctypes.data if isinstance(arg, np.ndarray) else arg for arg in args]):
            raise BackendError(f"out of memory in kernel {name}", remedy="lower train.global_batch")
        return True

    def launch(self, name: str, *args: Any) -> None:
        dtype = next(arg.dtype for arg in args if isinstance(arg, np.ndarray) and arg.dtype.kind == "f")
        if not self._run(name, dtype, *args):
            PLAIN[name](*args)

    def to_device(self, host: NDArr) -> NDArr:
        return np.ascontiguousarray(host)

    def to_host(self, array: NDArr) -> NDArr:
        return array

    def synchronize(self) -> None:
        """Nothing to wait for on a CPU."""

    def describe(self) -> str:
        kind = f"C kernels, level {self.level}" if self._c else "pure NumPy (the C kernels were not built: slower)"
        return f"CPU, NumPy {np.__version__}, {kind}"

    def dense_forward(self, x: NDArr, w: NDArr, b: NDArr | None, out: NDArr, *, relu: bool) -> None:
        self.matmul(x, w, out, b, relu)

    def matmul(
        self, a: NDArr, b: NDArr, out: NDArr, bias: NDArr | None = None, relu: bool = False, *, accumulate: bool = False
    ) -> None:
        """out = act(a @ b + bias) by our own kernel: unlike those of a BLAS its sums do not depend on the rows or threads."""
        strides = [stride // array.itemsize for array in (a, b, out) for stride in array.strides]
        (a0, a1, b0, b1, c0, c1), (m, k), n = strides, a.shape, b.shape[1]
        if not self._run("gemm", out.dtype, a, a0, a1, b, b0, b1, out, c0, c1, bias, m, n, k, relu, accumulate):
            if accumulate:
                out += a @ b
            else:
                out[...] = a @ b
            plain.bias_act(out, bias, relu)

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

    def conv2d_forward(self, x: NDArr, w: NDArr, b: NDArr | None, out: NDArr, geometry: Conv2DGeometry, *, relu: bool) -> None:
        if _is_product(geometry):
            flat_x, flat_w, rows = (a.reshape(-1, a.shape[-1]) for a in (x, w, out))
            self.matmul(flat_x, flat_w, rows, b, relu)
        elif not self._run("conv2d_forward", x.dtype, x, w, b, out, *_numbers(x, geometry), relu):
            plain.conv2d_forward(x, w, b, out, geometry, relu)

    def conv2d_backward_input(self, dy: NDArr, w: NDArr, out: NDArr, geometry: Conv2DGeometry) -> None:
        g = geometry
        if _is_product(g):
            self.matmul(dy.reshape(-1, g.out_channels), w.reshape(-1, g.out_channels).T, out.reshape(-1, g.in_channels))
        elif self._c and (
            g.stride > 1 or g.pad > min(g.kh, g.kw) - 1
        ):  # between the pixels of dy stand zeros: do not multiply them
            self.conv_backward_input(dy, w, out, g.general)
        elif not self._run("conv2d_backward_input", dy.dtype, dy, w, out, *_numbers(dy, g)):
            plain.conv2d_backward_input(dy, w, out, g)

    def conv2d_backward_weights(self, x: NDArr, dy: NDArr, dw: NDArr, db: NDArr | None, geometry: Conv2DGeometry) -> None:
        if _is_product(geometry):
            rows = dy.reshape(-1, geometry.out_channels)
            self.matmul(x.reshape(-1, geometry.in_channels).T, rows, dw.reshape(-1, geometry.out_channels))
            if db is not None:
                self.column_sums(rows, db)
        elif not self._run("conv2d_backward_weights", x.dtype, x, dy, dw, db, *_numbers(x, geometry)):
            plain.conv2d_backward_weights(x, dy, dw, db, geometry)

    def maxpool2d_forward(self, x: NDArr, out: NDArr, k: int) -> None:
        if not self._run("maxpool2d_forward", x.dtype, x, out, *x.shape, k):
            plain.maxpool2d_forward(x, out, k)

    def maxpool2d_backward(self, dy: NDArr, x: NDArr, y: NDArr, out: NDArr, k: int, *, relu: bool) -> None:
        if not self._run("maxpool2d_backward", x.dtype, dy, x, y, out, *x.shape, k, relu):
            plain.maxpool2d_backward(dy, x, y, out, k, relu)

    def softmax_cross_entropy(
        self, logits: NDArr, labels: NDArr, loss: NDArr, dlogits: NDArr, hit: NDArr, scale: float, smoothing: float = 0.0
    ) -> None:
        args = (logits, labels, loss, dlogits, hit, *logits.shape, scale, smoothing)
        if not self._run("softmax_cross_entropy", logits.dtype, *args):
            plain.softmax_cross_entropy(logits, labels, loss, dlogits, hit, scale, smoothing)

    def sgd_step(
        self, p: NDArr, g: NDArr, v: NDArr, *, lr: float, momentum: float, weight_decay: float, nesterov: bool
    ) -> None:
        if not self._run("sgd_step", p.dtype, p, g, v, p.size, lr, momentum, weight_decay, nesterov):
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
