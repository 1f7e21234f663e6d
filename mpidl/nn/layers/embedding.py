"""Embeddings of tokens and of positions."""

from __future__ import annotations

from mpidl.backend import Array
from mpidl.nn.layer import Backward, Layer, Shape
from mpidl.nn.parameters import ParameterSpec


class Embedding(Layer):
    """y (n, t, width) = weight[x], x (n, t) int64 in [0, rows).

    Args:
        rows: Number of embeddings: the size of the vocabulary.
        width: Size of each embedding.
        positions: Add a learned positional embedding (Radford et al., 2019).
    """

    kind = "embedding"
    capturable = True
    takes_ids = True

    def __init__(self, rows: int, width: int, *, positions: bool = False) -> None:
        super().__init__()
        self.rows = rows
        self.width = width
        self.positions = positions

    def output_shape(self, shape: Shape) -> Shape:
        return (*shape, self.width)

    def declare(self, shape: Shape) -> list[ParameterSpec]:
        table = ParameterSpec("weight", (self.rows, self.width), "small_normal")
        if not self.positions:
            return [table]
        return [table, ParameterSpec("positions", (*shape, self.width), "small_normal")]

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        y = self.workspace.get("y", (*x.shape, self.width), self.parameters.compute_dtype)
        self.ops.embedding_forward(self.value("weight"), x, y)
        if self.positions:
            self.ops.xp.add(y, self.value("positions"), out=y)

        def backward(dy: Array) -> None:
            dweight = self.gradient("weight")
            dweight[...] = 0
            self.ops.embedding_backward(dy, x, dweight)
            if self.positions:
                dpositions = self.gradient("positions").reshape(-1)
                self.ops.column_sums(dy.reshape(len(dy), -1), dpositions)

        return y, backward


class PositionalEmbedding(Layer):
    """Learned positional embedding: y (n, t, width) = x + weight (t, width)."""

    kind = "positional_embedding"
    capturable = True

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    def declare(self, shape: Shape) -> list[ParameterSpec]:
        return [ParameterSpec("weight", shape, "small_normal")]

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        y = self.workspace.get("y", x.shape, x.dtype)
        self.ops.xp.add(x, self.value("weight"), out=y)

        def backward(dy: Array) -> Array:
            self.ops.column_sums(dy.reshape(len(dy), -1), self.gradient("weight").reshape(-1))
            return dy.reshape(y.shape)

        return y, backward
