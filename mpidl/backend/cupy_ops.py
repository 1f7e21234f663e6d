"""The contract on a GPU: cuBLAS through CuPy for matrix products, the CUDA kernels of kernels/cuda for the rest."""

from __future__ import annotations

from typing import Any

import cupy as cp
import numpy as np
from numpy.typing import NDArray

from mpidl.backend import kernels
from mpidl.backend.ops import Array, Conv2DGeometry, Ops
from mpidl.errors import BackendError

BLOCK = 256
MAX_BLOCKS = 65535
COLUMN_BYTES = 256 << 20  # im2col works on so many images at a time that its columns stay below this
_REAL = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}


class CupyOps(Ops):
    """GPU backend on one device. local_rank picks it, modulo the number of devices."""

    name = "cupy"
    xp: Any = cp

    def __init__(self, local_rank: int = 0) -> None:
        self.device = local_rank % max(1, int(cp.cuda.runtime.getDeviceCount()))
        cp.cuda.Device(self.device).use()
        self._modules: dict[tuple[str, np.dtype[Any]], Any] = {}
        self._columns = self.workspace()

    def _kernel(self, family: str, name: str, dtype: Any) -> Any:
        key = (family, np.dtype(dtype))
        if key[1] not in _REAL:
            raise BackendError(f"no CUDA kernels for dtype {dtype}", where=name, remedy="use float32 or float64")
        if key not in self._modules:
            options = ("--std=c++17", f"-DREAL={_REAL[key[1]]}")
            self._modules[key] = cp.RawModule(code=kernels.cuda_source(family), options=options)
        return self._modules[key].get_function(name)

    def _each(self, family: str, name: str, real: Any, n: int, args: tuple[Any, ...]) -> None:
        """Launch a grid-stride kernel over n elements."""
        if n:
            blocks = min(-(-n // BLOCK), MAX_BLOCKS)
            self._kernel(family, name, real)((blocks,), (BLOCK,), args)

    def to_device(self, host: NDArray[Any]) -> Array:
        return cp.asarray(host)

    def to_host(self, array: Array) -> NDArray[Any]:
        result: NDArray[Any] = cp.asnumpy(array)
        return result

    def synchronize(self) -> None:
        cp.cuda.Device(self.device).synchronize()

    def describe(self) -> str:
        properties = cp.cuda.runtime.getDeviceProperties(self.device)
        name = properties["name"]
        return f"GPU {self.device}: {name.decode() if isinstance(name, bytes) else name}, CuPy {cp.__version__}"

    def bias_act(self, y: Array, bias: Array, *, relu: bool) -> None:
        args = (y, bias, np.int64(y.size), np.int64(y.shape[1]), np.int32(relu))
        self._each("pointwise", "bias_act", y.dtype, y.size, args)

    def relu_forward(self, x: Array, out: Array) -> None:
        self._each("pointwise", "relu_forward", x.dtype, x.size, (x, out, np.int64(x.size)))

    def relu_backward(self, dy: Array, y: Array, out: Array) -> None:
        self._each("pointwise", "relu_backward", y.dtype, y.size, (dy, y, out, np.int64(y.size)))

    def scale_u8(self, x: Array, out: Array, scale: float, shift: float) -> None:
        real = out.dtype.type
        self._each("pointwise", "scale_u8", out.dtype, x.size, (x, out, np.int64(x.size), real(scale), real(shift)))

    def column_sums(self, x: Array, out: Array) -> None:
        rows, cols = x.shape
        if cols:
            kernel = self._kernel("pointwise", "column_sums", x.dtype)
            kernel((-(-cols // 32),), (32, 8), (x, out, np.int64(rows), np.int64(cols)))

    def _slices(self, n: int, g: Conv2DGeometry, itemsize: int) -> list[tuple[int, int]]:
        """Ranges of images whose columns fit into COLUMN_BYTES."""
        each = g.out_height * g.out_width * g.kh * g.kw * g.in_channels * itemsize
        step = max(1, COLUMN_BYTES // max(1, each))
        return [(low, min(low + step, n)) for low in range(0, n, step)]

    def _column_space(self, images: int, g: Conv2DGeometry, dtype: Any) -> Array:
        shape = (images * g.out_height * g.out_width, g.kh * g.kw * g.in_channels)
        return self._columns.get("columns", shape, dtype)

    def _im2col(self, x: Array, g: Conv2DGeometry) -> Array:
        columns = self._column_space(len(x), g, x.dtype)
        self._each("conv2d", "im2col", x.dtype, columns.size, (x, columns, np.int64(columns.size), *_numbers(g)))
        return columns

    def conv2d_forward(self, x: Array, w: Array, b: Array, out: Array, geometry: Conv2DGeometry, *, relu: bool) -> None:
        g, flat_w = geometry, w.reshape(-1, geometry.out_channels)
        for low, high in self._slices(len(x), g, x.dtype.itemsize):
            cp.matmul(self._im2col(x[low:high], g), flat_w, out=out[low:high].reshape(-1, g.out_channels))
        self.bias_act(out.reshape(-1, g.out_channels), b, relu=relu)

    def conv2d_backward_input(self, dy: Array, w: Array, out: Array, geometry: Conv2DGeometry) -> None:
        g, flat_w = geometry, w.reshape(-1, geometry.out_channels)
        for low, high in self._slices(len(dy), g, dy.dtype.itemsize):
            columns, dx = self._column_space(high - low, g, dy.dtype), out[low:high]
            cp.matmul(dy[low:high].reshape(-1, g.out_channels), flat_w.T, out=columns)
            self._each("conv2d", "col2im", dy.dtype, dx.size, (columns, dx, np.int64(dx.size), *_numbers(g)))

    def conv2d_backward_weights(self, x: Array, dy: Array, dw: Array, db: Array, geometry: Conv2DGeometry) -> None:
        g, flat_dw = geometry, dw.reshape(-1, geometry.out_channels)
        flat_dw[...] = 0
        for low, high in self._slices(len(x), g, x.dtype.itemsize):
            flat_dw += cp.matmul(self._im2col(x[low:high], g).T, dy[low:high].reshape(-1, g.out_channels))
        self.column_sums(dy.reshape(-1, g.out_channels), db)

    def maxpool2d_forward(self, x: Array, out: Array, k: int) -> None:
        args = (x, out, np.int64(out.size), *(np.int64(extent) for extent in x.shape[1:]), np.int64(k))
        self._each("pool2d", "maxpool2d_forward", x.dtype, out.size, args)

    def maxpool2d_backward(self, dy: Array, x: Array, y: Array, out: Array, k: int, *, relu: bool) -> None:
        extents = (np.int64(extent) for extent in x.shape[1:])
        args = (dy, x, y, out, np.int64(out.size), *extents, np.int64(k), np.int32(relu))
        self._each("pool2d", "maxpool2d_backward", x.dtype, out.size, args)

    def softmax_cross_entropy(
        self, logits: Array, labels: Array, loss: Array, dlogits: Array, hit: Array, scale: float
    ) -> None:
        rows, classes = logits.shape
        if rows:
            kernel, real = self._kernel("loss", "softmax_cross_entropy", logits.dtype), logits.dtype.type
            args = (logits, labels, loss, dlogits, hit, np.int64(rows), np.int64(classes), real(scale))
            kernel((min(-(-rows // 8), MAX_BLOCKS),), (32, 8), args)

    def sgd_step(
        self, p: Array, g: Array, v: Array, *, lr: float, momentum: float, weight_decay: float, nesterov: bool
    ) -> None:
        real = p.dtype.type
        args = (p, g, v, np.int64(p.size), real(lr), real(momentum), real(weight_decay), np.int32(nesterov))
        self._each("optim", "sgd_step", p.dtype, p.size, args)


def _numbers(g: Conv2DGeometry) -> tuple[np.int64, ...]:
    numbers = (g.height, g.width, g.in_channels, g.kh, g.kw, g.stride, g.pad, g.out_height, g.out_width)
    return tuple(np.int64(number) for number in numbers)
