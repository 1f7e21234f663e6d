"""Tokens to vectors."""

from __future__ import annotations

from mpidl.backend import Array
from mpidl.nn.layer import Backward, Layer, Shape
from mpidl.nn.parameters import ParameterSpec


class Embedding(Layer):
    """y (n, t, width) = weight[x], x (n, t) int64 in [0, rows); positions: a learned vector for each place is added
    (Radford et al., 2019)."""

    kind = "embedding"
    capturable = True
    takes_ids = True

    def __init__(self, rows: int, width: int, *, positions: bool = False) -> None:
        super().__init__()
        self.rows, self.width, self.positions = rows, width, positions

    def output_shape(self, shape: Shape) -> Shape:
        return (*shape, self.width)

    def declare(self, shape: Shape) -> list[ParameterSpec]:
        table = ParameterSpec("weight", (self.rows, self.width), "small_normal")
        return (
            [table, ParameterSpec("positions", (*shape, self.width), "small_normal")]
            if self.positions
            else [table]
        )

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        y = self.space.get("y", (*x.shape, self.width), self.parameters.compute_dtype)
        self.ops.embedding_forward(self._value("weight"), x, y)
        if self.positions:
            self.ops.xp.add(y, self._value("positions"), out=y)

        def backward(dy: Array) -> None:
            gradient = self._gradient("weight")
            gradient[...] = 0
            self.ops.embedding_backward(dy, x, gradient)
            if self.positions:
                self.ops.column_sums(
                    dy.reshape(len(dy), -1), self._gradient("positions").reshape(-1)
                )

        return y, backward


class Positions(Layer):
    """y (n, t, width) = x + weight (t, width): a learned vector for each place."""

    kind = "positions"
    capturable = True

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    def declare(self, shape: Shape) -> list[ParameterSpec]:
        return [ParameterSpec("weight", shape, "small_normal")]

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        y = self.space.get("y", x.shape, x.dtype)
        self.ops.xp.add(x, self._value("weight"), out=y)

        def backward(dy: Array) -> Array:
            self.ops.column_sums(dy.reshape(len(dy), -1), self._gradient("weight").reshape(-1))
            return dy.reshape(y.shape)

        return y, backward
