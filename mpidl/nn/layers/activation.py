"""Activation functions, softmax and dropout as layers."""

from __future__ import annotations

from mpidl.backend import Array
from mpidl.backend.contract.pointwise import ACTIVATIONS
from mpidl.errors import ConfigError, nearest
from mpidl.nn.layer import Backward, Layer, Shape

STREAMS = 1 << 16  # random streams per layer: one for each micro-batch of a step


def check_activation(name: str) -> None:
    """Check that there is a kernel for an activation function.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(f"unknown activation {name!r}", remedy=nearest(name, ACTIVATIONS))


class Activation(Layer):
    """y = act(x), elementwise.

    Args:
        name: A key of `mpidl.backend.contract.pointwise.ACTIVATIONS`.
    """

    kind = "activation"
    capturable = True

    def __init__(self, name: str) -> None:
        check_activation(name)
        super().__init__()
        self.function = name

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        y = self.workspace.get("y", x.shape, x.dtype)
        self.ops.act_forward(x, y, self.function)

        def backward(dy: Array) -> Array:
            self.ops.act_backward(dy, x, y, dy, self.function)
            return dy

        return y, backward


class ReLU(Activation):
    """y = max(x, 0), elementwise."""

    kind = "relu"

    def __init__(self) -> None:
        super().__init__("relu")


class Softmax(Layer):
    """Softmax over the last axis.

    Args:
        log: Compute the logarithm of the softmax.
    """

    kind = "softmax"
    capturable = True

    def __init__(self, *, log: bool = False) -> None:
        super().__init__()
        self.log = log

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        rows = x.reshape(-1, x.shape[-1])
        y = self.workspace.get("y", rows.shape, x.dtype)
        self.ops.softmax_forward(rows, y, log=self.log)

        def backward(dy: Array) -> Array:
            dy = dy.reshape(rows.shape)
            self.ops.softmax_backward(dy, y, dy, log=self.log)
            return dy.reshape(x.shape)

        return y.reshape(x.shape), backward


class Dropout(Layer):
    """Dropout (Srivastava et al., 2014).

    In training, y = x / (1 - rate) with probability 1 - rate, else 0; otherwise y = x. Masks are a
    function of (seed, step, micro-batch, layer), recomputed instead of stored, and the same on any
    number of ranks.

    Args:
        rate: Probability of dropping an element, in [0, 1).
    """

    kind = "dropout"
    capturable = True

    def __init__(self, rate: float = 0.1) -> None:
        if not 0 <= rate < 1:
            raise ConfigError(f"the dropout rate is {rate}", remedy="choose one in [0, 1)")
        super().__init__()
        self.rate = rate

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        if not train or self.rate == 0:
            return x, lambda dy: dy
        y = self.workspace.get("y", x.shape, x.dtype)
        self._drop(x, y)

        def backward(dy: Array) -> Array:
            self._drop(dy, dy)
            return dy

        return y, backward

    def _drop(self, x: Array, out: Array) -> None:
        key = self.runtime.rng_key(self.ops)
        self.ops.dropout(x, out, 1 - self.rate, key, self.number * STREAMS)
