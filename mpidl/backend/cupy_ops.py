"""The contract on a GPU: cuBLAS through CuPy for matrix products, the CUDA kernels of kernels/cuda for the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cupy as cp
import cupyx
import ml_dtypes
import numpy as np
from cupy.cuda import cublas
from numpy.typing import NDArray

from mpidl.backend import kernels
from mpidl.backend.binder import Binder
from mpidl.backend.contract.base import Array, accumulator
from mpidl.backend.contract.conv import check_tiles
from mpidl.backend.ops import Conv2DGeometry, Ops
from mpidl.backend.table import C_KERNELS, KERNELS
from mpidl.errors import BackendError

BLOCK = 256
MAX_BLOCKS = 65535
_REAL = {
    np.dtype(np.float32): "float",
    np.dtype(np.float64): "double",
    np.dtype(np.float16): "f16",
    np.dtype(ml_dtypes.bfloat16): "bf16",
}
_CUDA_TYPE = {"float": 0, "double": 1, "f16": 2, "bf16": 14}  # cudaDataType


class CupyOps(Ops):
    """GPU backend on one device. local_rank picks it, modulo the number of devices."""

    name = "cupy"
    xp: Any = cp
    column_bytes = 256 << 20
    captures = True
    largest_head = 256  # attention.cu keeps a head in the registers of a warp
    half_types = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))

    def __init__(self, local_rank: int = 0) -> None:
        self.device = local_rank % max(1, int(cp.cuda.runtime.getDeviceCount()))
        cp.cuda.Device(self.device).use()
        self._modules: dict[tuple[str, np.dtype[Any]], Any] = {}
        self._column_memory = self.workspace()
        self._binders: dict[tuple[str, Any], Binder] = {}
        self._slots: dict[str, list[_Slot]] = {}
        self._copies = cp.cuda.Stream(non_blocking=True)
        self._consumed: Any = None

    def _kernel(self, family: str, name: str, dtype: Any) -> Any:
        key = (family, np.dtype(dtype))
        if key[1] not in _REAL:
            known = ", ".join(str(known) for known in _REAL)
            raise BackendError(
                f"no CUDA kernels for dtype {dtype}", where=name, remedy=f"use one of {known}"
            )
        if key not in self._modules:
            options = (
                "--std=c++17",
                f"-DREAL={_REAL[key[1]]}",
                f"-DACC={_REAL[accumulator(key[1])]}",
            )
            self._modules[key] = cp.RawModule(code=kernels.cuda_source(family), options=options)
        return self._modules[key].get_function(name)

    def _each(self, family: str, name: str, real: Any, n: int, args: tuple[Any, ...]) -> None:
        """Launch a grid-stride kernel over n elements."""
        if n:
            blocks = min(-(-n // BLOCK), MAX_BLOCKS)
            self._kernel(family, name, real)((blocks,), (BLOCK,), args)

    def _check(self, name: str, dtype: Any, *args: Any) -> None:
        """Raise BackendError unless `args`, in the order of the table, fit kernel `name`."""
        binder = self._binders.get((name, dtype))
        if binder is None:
            kernel = KERNELS.get(name) or C_KERNELS[name]
            binder = self._binders[name, dtype] = Binder(name, kernel, dtype)
        binder.check(args)

    def launch(self, name: str, *args: Any) -> None:
        if name == "attention_backward":
            self._attention_backward(*args)
            return
        kernel = KERNELS[name]
        reals = (arg for letter, arg in zip(kernel.arguments, args, strict=False) if letter in "ps")
        dtype = next((arg.dtype for arg in reals if hasattr(arg, "dtype")), np.dtype(np.float32))
        self._check(name, dtype, *args)
        grid, block = _cover(kernel.launch, args)
        if all(grid):
            scalars: dict[str, Any] = {
                "n": np.int64,
                "r": accumulator(dtype).type,
                "e": np.float64,
                "f": np.int32,
            }
            passed = [
                scalars[letter](arg) if letter in scalars else np.uint64(0) if arg is None else arg
                for letter, arg in zip(kernel.arguments, args, strict=True)
            ]
            self._kernel(kernel.family, name, dtype)(grid, block, tuple(passed))

    def _attention_backward(self, *args: Any) -> None:
        inputs, (dq, dk, dv), numbers = args[:6], args[6:9], args[9:]
        self.launch("attention_backward_q", *inputs, dq, *numbers)
        self.launch("attention_backward_kv", *inputs, dk, dv, *numbers)

    def matmul(self, a: Array, b: Array, out: Array, *, accumulate: bool = False) -> None:
        """By cublasGemmEx, which reads views as they are, adds to `out` in place, and sums 16-bit numbers in float32."""
        if not out.size:
            return
        if not a.shape[1]:
            if not accumulate:
                out[...] = 0
            return
        if _leading(out)[0] == "N":
            self._gemm(a, b, out, accumulate)
            return
        held = cp.ascontiguousarray(out)
        self._gemm(a, b, held, accumulate)
        out[...] = held

    def _gemm(self, a: Array, b: Array, out: Array, accumulate: bool) -> None:
        """Row-major out = a @ b, as column-major out.T = b.T @ a.T."""
        (left, how_left, ld_left), (right, how_right, ld_right) = _operand(b), _operand(a)
        real = accumulator(out.dtype)
        one, beta = np.ones(1, real), np.full(1, int(accumulate), real)
        kinds = [_CUDA_TYPE[_REAL[array.dtype]] for array in (left, right, out)]
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

    def round_copy(self, x: Array, out: Array) -> None:
        self.launch("round_copy", x, out, x.size)

    def to_device(self, host: NDArray[Any]) -> Array:
        return cp.asarray(host)

    def stage(self, host: NDArray[Any], slot: str) -> Array:
        """Through pinned memory on a stream of its own; two buffers a slot take turns.

        A buffer is filled again only after the work that was there when the slot was asked for the last time, so the latest
        launches may still compute.
        """
        main = cp.cuda.get_current_stream()
        turns = self._slots.setdefault(slot, [_Slot(), _Slot()])
        turns.reverse()
        array = turns[0].send(np.ascontiguousarray(host), self._copies, self._consumed)
        main.wait_event(turns[0].arrived)
        self._consumed = main.record()
        return array

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph. Temporaries come from a memory pool that belongs to it."""
        pool, stream = cp.cuda.MemoryPool(), cp.cuda.Stream(non_blocking=True)
        self.synchronize()
        with stream, cp.cuda.using_allocator(pool.malloc):
            work()  # compiles kernels and allocates, which a capture could not
            stream.synchronize()
            stream.begin_capture()
            work()
            graph = stream.end_capture()

        def launch(held: Any = pool) -> None:
            graph.launch()

        return launch

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
        self._check("bias_act", y.dtype, y, bias, *y.shape, relu)
        args = (y, bias, np.int64(y.size), np.int64(y.shape[1]), np.int32(relu))
        self._each("pointwise", "bias_act", y.dtype, y.size, args)

    def relu_forward(self, x: Array, out: Array) -> None:
        self._check("relu_forward", x.dtype, x, out, x.size)
        self._each("pointwise", "relu_forward", x.dtype, x.size, (x, out, np.int64(x.size)))

    def relu_backward(self, dy: Array, y: Array, out: Array) -> None:
        self._check("relu_backward", y.dtype, dy, y, out, y.size)
        self._each("pointwise", "relu_backward", y.dtype, y.size, (dy, y, out, np.int64(y.size)))

    def scale_u8(self, x: Array, out: Array, scale: float, shift: float) -> None:
        real = accumulator(out.dtype).type
        self._check("scale_u8", out.dtype, x, out, x.size, scale, shift)
        self._each(
            "pointwise",
            "scale_u8",
            out.dtype,
            x.size,
            (x, out, np.int64(x.size), real(scale), real(shift)),
        )

    def column_sums(self, x: Array, out: Array) -> None:
        rows, cols = x.shape
        self._check("column_sums", x.dtype, x, out, rows, cols)
        if cols:
            kernel = self._kernel("pointwise", "column_sums", x.dtype)
            kernel((-(-cols // 32),), (32, 8), (x, out, np.int64(rows), np.int64(cols)))

    def conv2d_forward(
        self,
        x: Array,
        w: Array,
        b: Array | None,
        out: Array,
        geometry: Conv2DGeometry,
        *,
        relu: bool,
    ) -> None:
        self.conv_forward(x, w, None, out, geometry.general)
        if b is not None:
            self.bias_act(out.reshape(-1, geometry.out_channels), b, relu=relu)
        elif relu:
            self.relu_forward(out, out)

    def conv2d_backward_input(
        self, dy: Array, w: Array, out: Array, geometry: Conv2DGeometry
    ) -> None:
        self.conv_backward_input(dy, w, out, geometry.general)

    def conv2d_backward_weights(
        self, x: Array, dy: Array, dw: Array, db: Array | None, geometry: Conv2DGeometry
    ) -> None:
        self.conv_backward_weights(x, dy, dw, None, geometry.general)
        if db is not None:
            self.column_sums(dy.reshape(-1, geometry.out_channels), db)

    def maxpool2d_forward(self, x: Array, out: Array, k: int) -> None:
        check_tiles(x, out, k)
        self._check("maxpool2d_forward", x.dtype, x, out, *x.shape, k)
        args = (
            x,
            out,
            np.int64(out.size),
            *(np.int64(extent) for extent in x.shape[1:]),
            np.int64(k),
        )
        self._each("pool2d", "maxpool2d_forward", x.dtype, out.size, args)

    def maxpool2d_backward(
        self, dy: Array, x: Array, y: Array, out: Array, k: int, *, relu: bool
    ) -> None:
        check_tiles(x, dy, k)
        check_tiles(x, y, k)
        self._check("maxpool2d_backward", x.dtype, dy, x, y, out, *x.shape, k, relu)
        extents = (np.int64(extent) for extent in x.shape[1:])
        args = (dy, x, y, out, np.int64(out.size), *extents, np.int64(k), np.int32(relu))
        self._each("pool2d", "maxpool2d_backward", x.dtype, out.size, args)

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
        rows, classes = logits.shape
        arrays = logits, labels, loss, dlogits, hit
        self._check("softmax_cross_entropy", logits.dtype, *arrays, rows, classes, scale, smoothing)
        if rows:
            kernel, real = (
                self._kernel("loss", "softmax_cross_entropy", logits.dtype),
                accumulator(logits.dtype).type,
            )
            args = (*arrays, np.int64(rows), np.int64(classes), real(scale), real(smoothing))
            kernel((min(-(-rows // 8), MAX_BLOCKS),), (32, 8), args)

    def sgd_step(
        self,
        p: Array,
        g: Array,
        v: Array,
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        nesterov: bool,
    ) -> None:
        real = p.dtype.type
        self._check("sgd_step", p.dtype, p, g, v, p.size, lr, momentum, weight_decay, nesterov)
        args = (
            p,
            g,
            v,
            np.int64(p.size),
            real(lr),
            real(momentum),
            real(weight_decay),
            np.int32(nesterov),
        )
        self._each("optim", "sgd_step", p.dtype, p.size, args)


class _Slot:
    """One pinned and one device buffer for inputs."""

    def __init__(self) -> None:
        self.arrived: Any = None
        self._pinned = np.empty(0, np.uint8)
        self._device: Any = None

    def send(self, host: NDArray[Any], stream: Any, consumed: Any) -> Array:
        """Start the copy of `host`, after the event `consumed`; `arrived` is the event of its end."""
        if self.arrived is not None:
            self.arrived.synchronize()  # the pinned buffer is free again
        if self._device is None or self._pinned.nbytes < host.nbytes:
            self._pinned = cupyx.empty_pinned(host.nbytes, np.uint8)
            self._device = cp.empty(host.nbytes, np.uint8)
        pinned = self._pinned[: host.nbytes].view(host.dtype).reshape(host.shape)
        device: Array = self._device[: host.nbytes].view(host.dtype).reshape(host.shape)
        pinned[...] = host
        if consumed is not None:
            stream.wait_event(consumed)
        device.set(pinned, stream=stream)
        self.arrived = stream.record()
        return device


def _cover(
    launch: tuple[str | int, ...], args: tuple[Any, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Grid and block for what `mpidl.backend.table` says of a kernel; a grid of 0 where there is nothing to do."""
    kind, numbers = launch[0], [int(args[index]) for index in launch[1:] if isinstance(index, int)]
    count = math.prod(numbers)
    if kind == "each":
        return (min(-(-count // BLOCK), MAX_BLOCKS),), (BLOCK,)
    if kind == "warps":
        return (min(-(-count // 8), MAX_BLOCKS),), (32, 8)
    if kind == "groups":
        return (min(numbers[0] * numbers[1] * -(-numbers[2] // 8), MAX_BLOCKS),), (32, 8)
    if kind == "blocks":
        return (min(count, MAX_BLOCKS),), (BLOCK,)
    return (-(-numbers[0] // 32), min([*numbers[1:], 1][0], MAX_BLOCKS)), (32, 8)


def _leading(array: Array) -> tuple[str, int]:
    """How cuBLAS can read a row-major matrix without a copy: as its transpose ("N") or as itself ("T"), and the distance
    between its rows or columns in elements; ("", 0) if it cannot."""
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


def _operand(array: Array) -> tuple[Array, str, int]:
    how, distance = _leading(array)
    if not how:
        array = cp.ascontiguousarray(array)
        how, distance = _leading(array)
    return array, how, distance
