"""Self-attention."""

from __future__ import annotations

from mpidl.backend import Array, accumulator
from mpidl.nn.layer import Backward, Layer, Shape
from mpidl.nn.parameters import ParameterSpec


class SelfAttention(Layer):
    """Multi-head self-attention (Vaswani et al., 2017): x (n, t, width) to (n, t, width); causal: no token sees later ones."""

    kind = "attention"
    capturable = True

    def __init__(self, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 2 or shape[1] % self.heads:
            raise self._refuse(
                shape,
                f"attention needs (tokens, width) with a width that {self.heads} heads divide",
            )
        return shape

    def declare(self, shape: Shape) -> list[ParameterSpec]:
        width = shape[1]
        return [
            ParameterSpec("qkv.weight", (width, 3 * width), "lecun_normal", fan_in=width),
            ParameterSpec("qkv.bias", (3 * width,)),
            ParameterSpec("out.weight", (width, width), "lecun_normal", fan_in=width),
            ParameterSpec("out.bias", (width,)),
        ]

    def flops(self, shape: Shape) -> float:
        tokens, width = shape
        return 8.0 * tokens * width * width + 4.0 * tokens * tokens * width * (
            0.5 if self.causal else 1.0
        )

    def stored(self, shape: Shape) -> int:
        return shape[0] * (5 * shape[1] + self.heads)

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        n, t, width = x.shape
        dim, rows, ops = width // self.heads, x.reshape(-1, width), self.ops
        qkv = self.space.get("qkv", (n * t, 3 * width), x.dtype)
        ops.dense_forward(rows, self._value("qkv.weight"), self._value("qkv.bias"), qkv, relu=False)
        q, k, v = self._heads(qkv, n, t, dim)
        mixed, lse = (
            self.space.get("mixed", (n, t, self.heads, dim), x.dtype),
            self.space.get("lse", (n, self.heads, t), accumulator(x.dtype)),
        )
        ops.attention_forward(q, k, v, mixed, lse, scale=dim**-0.5, causal=self.causal)
        y = self.space.get("y", (n * t, width), x.dtype)
        ops.dense_forward(
            mixed.reshape(rows.shape),
            self._value("out.weight"),
            self._value("out.bias"),
            y,
            relu=False,
        )

        def backward(dy: Array) -> Array | None:
            dmixed = self.space.get("dmixed", (n * t, width), x.dtype)
            flat, dw, db = (
                mixed.reshape(rows.shape),
                self._gradient("out.weight"),
                self._gradient("out.bias"),
            )
            ops.dense_backward(
                flat, self._value("out.weight"), dy.reshape(rows.shape), dw, db, dmixed
            )
            dqkv = self.space.get("dqkv", (n * t, 3 * width), x.dtype)
            parts = self._heads(dqkv, n, t, dim)
            shaped = dmixed.reshape(mixed.shape)
            ops.attention_backward(
                shaped, q, k, v, mixed, lse, *parts, scale=dim**-0.5, causal=self.causal
            )
            dx = self.space.get("dx", rows.shape, x.dtype) if self.needs_input_gradient else None
            dw, db = self._gradient("qkv.weight"), self._gradient("qkv.bias")
            ops.dense_backward(rows, self._value("qkv.weight"), dqkv, dw, db, dx)
            return None if dx is None else dx.reshape(x.shape)

        return y.reshape(x.shape), backward

    def _heads(self, qkv: Array, n: int, t: int, dim: int) -> tuple[Array, Array, Array]:
        """Views (n, t, heads, dim) of queries, keys and values."""
        whole = qkv.reshape(n, t, 3, self.heads, dim)
        return whole[:, :, 0], whole[:, :, 1], whole[:, :, 2]
