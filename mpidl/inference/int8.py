"""Layers that multiply in int8."""

from __future__ import annotations

from typing import Any, cast

from mpidl.backend import Array, Ops
from mpidl.backend.contract.conv import ConvGeometry
from mpidl.backend.contract.int8 import Int8Weights
from mpidl.nn import Layer


def use_int8(layer: Layer, w: Array, known: Int8Weights) -> None:
    """Let a layer multiply by an int8 matrix.

    Args:
        layer: Bound to a model.
        w: Its parameter, a view that its storage keeps.
        known: What `w` holds.
    """
    if not multiplies_int8(layer):
        layer.ops = cast(Ops, Int8Products(layer.ops))
    cast(Int8Products, layer.ops).add(w, known)


def multiplies_int8(layer: Layer) -> bool:
    """Whether `use_int8` was called for a layer."""
    return isinstance(layer.ops, Int8Products)


class Int8Products:
    """The operations of one layer, its products with known matrices by int8 kernels.

    Args:
        ops: What does all else.
    """

    def __init__(self, ops: Ops) -> None:
        self._ops = ops
        # by the identity of the view of the parameter, which its storage keeps
        self._weights: dict[int, Int8Weights] = {}

    def add(self, w: Array, known: Int8Weights) -> None:
        """Multiply by `known` where `w` is asked for."""
        self._weights[id(w)] = known

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def dense_forward(self, x: Array, w: Array, b: Array | None, out: Array, *, relu: bool) -> None:
        """As `DenseOps.dense_forward`."""
        known = self._weights.get(id(w))
        if known is None:  # attention has two matrices, of which a file may hold one as int8
            self._ops.dense_forward(x, w, b, out, relu=relu)
        else:
            self._ops.int8_dense(x, known, b, out, relu=relu)

    def conv_forward(
        self,
        x: Array,
        w: Array,
        b: Array | None,
        out: Array,
        g: ConvGeometry,
        *,
        relu: bool = False,
        pool: int = 1,
    ) -> None:
        """As `ConvOps.conv_forward`, with `pool` of `Int8Ops.int8_conv`."""
        self._ops.int8_conv(x, self._weights[id(w)], b, out, g, relu=relu, pool=pool)
