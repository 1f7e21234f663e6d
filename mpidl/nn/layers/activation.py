"""Activations as layers of their own, softmax, and dropout."""

from __future__ import annotations

from mpidl.backend import Array
from mpidl.backend.contract.pointwise import ACTIVATIONS
from mpidl.nn.layer import Backward, Layer, Shape

PARTS = 1 << 16  # micro-batches of a step that have masks of their own


class Activation(Layer):
    """y = act(x), any shape. name: a key of `mpidl.backend.contract.pointwise.ACTIVATIONS`."""

    kind = "act"
    capturable = True

    def __init__(self, name: str) -> None:
        if name not in ACTIVATIONS:
            raise ValueError(f"unknown activation {name!r}: choose one of {', '.join(ACTIVATIONS)}")
        self.function = name
        super().__init__()

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        y = self.space.get("y", x.shape, x.dtype)
        self.ops.act_forward(x, y, self.function)

        def backward(dy: Array) -> Array:
            self.ops.act_backward(dy, x, y, dy, self.function)
            return dy

        return y, backward


class ReLU(Activation):
    """y = max(x, 0), any shape."""

    kind = "relu"

    def __init__(self) -> None:
        super().__init__("relu")


class Softmax(Layer):
    """y = softmax of x over its last axis, or its logarithm."""

    kind = "softmax"
    capturable = True

    def __init__(self, *, log: bool = False) -> None:
        super().__init__()
        self.log = log

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        rows = x.reshape(-1, x.shape[-1])
        y = self.space.get("y", rows.shape, x.dtype)
        self.ops.softmax_forward(rows, y, log=self.log)

        def backward(dy: Array) -> Array:
            dy = dy.reshape(rows.shape)
            self.ops.softmax_backward(dy, y, dy, log=self.log)
            return dy.reshape(x.shape)

        return y.reshape(x.shape), backward


class Dropout(Layer):
    """In training y = x / (1 - rate) with probability 1 - rate, else 0 (Srivastava et al., 2014); y = x otherwise.

    Masks are drawn anew from (seed, step, micro-batch, layer), not stored: the same on any number of ranks.
    """

    kind = "dropout"
    capturable = True

    def __init__(self, rate: float = 0.1) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"a dropout rate is in [0, 1), not {rate}")
        super().__init__()
        self.rate = rate

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        if not train or self.rate == 0:
            return x, lambda dy: dy
        y = self.space.get("y", x.shape, x.dtype)
        self._drop(x, y)

        def backward(dy: Array) -> Array:
            self._drop(dy, dy)
            return dy

        return y, backward

    def _drop(self, x: Array, out: Array) -> None:
        self.ops.dropout(x, out, 1 - self.rate, self.runtime.drawn(self.ops), self.number * PARTS)
