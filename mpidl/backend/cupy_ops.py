"""The contract on a GPU: the CUDA kernels of kernels/cuda, and cuBLAS for matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cupy as cp
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mpidl.backend.array import Array
from mpidl.backend.cuda.compress import DeviceCompressOps
from mpidl.backend.cuda.gemm import gemm
from mpidl.backend.cuda.launch import KernelLauncher
from mpidl.backend.cuda.staging import Staging
from mpidl.backend.ops import Ops


class CupyOps(DeviceCompressOps, Ops):
    """GPU backend on one device.

    Args:
        local_rank: Picks the device, modulo the number of devices.
    """

    name = "cupy"
    xp: Any = cp
    column_bytes = 256 << 20
    captures = True
    largest_head = 256  # attention.cu keeps a head in the registers of a warp
    half_types = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))

    def __init__(self, local_rank: int = 0) -> None:
        self.device = local_rank % max(1, int(cp.cuda.runtime.getDeviceCount()))
        cp.cuda.Device(self.device).use()
        self._launcher = KernelLauncher()
        self._staging = Staging()
        self._column_memory = self.workspace()

    def launch(self, name: str, *args: Any) -> None:
        self._launcher(name, *args)

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
        gemm(a, b, out, accumulate)
        if bias is not None:
            self.bias_act(out, bias, relu=relu)
        elif relu:
            self.relu_forward(out, out)

    def to_device(self, host: NDArray[Any]) -> Array:
        array: Array = cp.asarray(host)
        return array

    def stage(self, host: NDArray[Any], slot: str) -> Array:
        return self._staging.send(host, slot)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph. Temporaries come from a memory pool that belongs to it."""
        pool = cp.cuda.MemoryPool()
        stream = cp.cuda.Stream(non_blocking=True)
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
        name = name.decode() if isinstance(name, bytes) else name
        return f"GPU {self.device}: {name}, CuPy {cp.__version__}"
