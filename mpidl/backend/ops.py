"""The contract of a compute backend: every operation with its shapes, dtypes and layout.

Layout is NHWC for images and (rows, columns) for the rest; arrays are C-contiguous and of one floating dtype, float32 or
float64. On a GPU activations and weight matrices may have 16 bits; then vectors of parameters, statistics and all gradients
of parameters are float32 (`accumulator`). Operations write into `out` arrays that the caller owns, so that a steady training
step allocates nothing.
What NumPy and CuPy spell alike is written once, here, with `self.xp`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mpidl.backend.contract.base import Array
from mpidl.backend.contract.conv import ConvGeometry, ConvOps
from mpidl.backend.contract.norm import NormOps
from mpidl.backend.contract.optim import OptimOps
from mpidl.backend.contract.pointwise import PointwiseOps
from mpidl.backend.contract.sequence import SequenceOps


@dataclass(frozen=True)
class Conv2DGeometry:
    """The numbers of a convolution: kernel (kh, kw), stride and zero padding (the same on all sides)."""

    height: int
    width: int
    in_channels: int
    out_channels: int
    kh: int
    kw: int
    stride: int
    pad: int

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        return (self.height + 2 * self.pad - self.kh) // self.stride + 1

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        return (self.width + 2 * self.pad - self.kw) // self.stride + 1

    @property
    def general(self) -> ConvGeometry:
        """The same convolution for the kernels that work through columns."""
        size, kernel = (1, self.height, self.width), (1, self.kh, self.kw)
        stride, pad = (1, self.stride, self.stride), (0, self.pad, self.pad)
        return ConvGeometry(size, self.in_channels, self.out_channels, kernel, stride, pad)


@dataclass
class Workspace:
    """Arrays that a layer uses again in every step, grown when a larger batch comes."""

    ops: Ops
    _held: dict[str, Array] = field(default_factory=dict)

    def get(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """An array of `shape` under `name`, with arbitrary contents; valid until the next `get` of that name."""
        count = int(np.prod(shape, dtype=np.int64))
        held = self._held.get(name)
        if held is None or held.size < count or held.dtype != np.dtype(dtype):
            self.ops.allocations += 1
            held = self._held[name] = self.ops.xp.empty(count, dtype)
        return held[:count].reshape(shape)


class Ops(PointwiseOps, NormOps, SequenceOps, ConvOps, OptimOps):
    """The operations that layers, losses and optimizers know. Everything else about a device stays behind them.

    Here stand memory, dense layers and plain 2-D convolutions; the other families are in `mpidl.backend.contract`.
    """

    name: str
    xp: Any
    _column_memory: Workspace
    allocations = 0  # by workspaces so far: as long as it stays, they stay where they are
    captures = False  # whether `capture` makes work cheaper to launch

    def column_space(self, count: int, dtype: Any) -> Array:
        return self._column_memory.get("columns", (count,), dtype)

    # --- memory ---
    def workspace(self) -> Workspace:
        """A new, empty set of reused arrays."""
        return Workspace(self)

    @abstractmethod
    def to_device(self, host: NDArray[Any]) -> Array:
        """A host array as an array of this backend (no copy where that is possible)."""

    def stage(self, host: NDArray[Any], slot: str) -> Array:
        """As `to_device`, for inputs of a step: on a GPU the copy goes on while earlier work computes.

        Valid until the second next call with the same slot.
        """
        return self.to_device(host)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Run `work` once, and return what does the same on the same memory again; on a GPU as one graph, launched at once.

        work: launches kernels only, with the same arguments each time, and asks for no result.
        """
        work()
        return work

    @abstractmethod
    def to_host(self, array: Array) -> NDArray[Any]:
        """An array of this backend as a NumPy array (no copy where that is possible)."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until everything asked of the device is done."""

    @abstractmethod
    def describe(self) -> str:
        """One line for people: the device and the kernels in use."""

    def round_copy(self, x: Array, out: Array) -> None:
        """Out (n, 16 bits) = x (n, float32), rounded to nearest even."""
        raise NotImplementedError

    # --- dense ---
    def dense_forward(self, x: Array, w: Array, b: Array | None, out: Array, *, relu: bool) -> None:
        """out (n, o) = act(x (n, i) @ w (i, o) + b (o)); ReLU only with a bias."""
        self.matmul(x, w, out)
        if b is not None:
            self.bias_act(out, b, relu=relu)

    def dense_backward(
        self, x: Array, w: Array, dy: Array, dw: Array, db: Array | None, dx: Array | None
    ) -> None:
        """dw = x.T @ dy, db = column sums of dy, dx = dy @ w.T (both skipped where None); all overwritten."""
        self.matmul(x.T, dy, dw)
        if db is not None:
            self.column_sums(dy, db)
        if dx is not None:
            self.matmul(dy, w.T, dx)

    # --- element-wise ---
    @abstractmethod
    def bias_act(self, y: Array, bias: Array, *, relu: bool) -> None:
        """Y (rows, cols) = act(y + bias (cols)), in place."""

    @abstractmethod
    def relu_forward(self, x: Array, out: Array) -> None:
        """Out = max(x, 0); a NaN stays a NaN. out may be x."""

    @abstractmethod
    def relu_backward(self, dy: Array, y: Array, out: Array) -> None:
        """Out = dy where y > 0, else 0. out may be dy."""

    @abstractmethod
    def column_sums(self, x: Array, out: Array) -> None:
        """Out (cols) = sum of x (rows, cols) over its rows."""

    @abstractmethod
    def scale_u8(self, x: Array, out: Array, scale: float, shift: float) -> None:
        """Out (float, same shape) = x (uint8) * scale + shift."""

    def scale_float(self, x: Array, out: Array, scale: float, shift: float) -> None:
        """Out = x * scale + shift, for inputs that are floating already."""
        self.xp.multiply(x, out.dtype.type(scale), out=out, casting="same_kind")
        self.xp.add(out, out.dtype.type(shift), out=out)

    # --- convolution and pooling ---
    @abstractmethod
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
        """Out (n, oh, ow, co) = act(b (co) + x (n, h, w, ci) convolved with w (kh, kw, ci, co)); b may be None."""

    @abstractmethod
    def conv2d_backward_input(
        self, dy: Array, w: Array, out: Array, geometry: Conv2DGeometry
    ) -> None:
        """Out (n, h, w, ci) = gradient of the input, overwritten."""

    @abstractmethod
    def conv2d_backward_weights(
        self, x: Array, dy: Array, dw: Array, db: Array | None, geometry: Conv2DGeometry
    ) -> None:
        """Gradients of the weights dw (kh, kw, ci, co) and of the bias db (co, or None), overwritten."""

    @abstractmethod
    def maxpool2d_forward(self, x: Array, out: Array, k: int) -> None:
        """Out (n, h // k, w // k, c) = maximum over windows of k x k with stride k."""

    @abstractmethod
    def maxpool2d_backward(
        self, dy: Array, x: Array, y: Array, out: Array, k: int, *, relu: bool
    ) -> None:
        """Out (n, h, w, c): dy at the first maximum of each window, 0 elsewhere; with relu also 0 where x <= 0."""

    # --- losses and optimizers ---
    @abstractmethod
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
        """Loss (n) = -sum of target * log softmax(logits (n, c)); dlogits = its gradient * scale; hit (n, uint8).

        target: 1 - smoothing at labels (n, int64), and smoothing / c everywhere (Szegedy et al., 2016). Rows with a negative
        label count nothing.
        """

    @abstractmethod
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
        """In place: g' = g + weight_decay p; v = momentum v + g'; p -= lr (g' + momentum v if nesterov else v)."""
