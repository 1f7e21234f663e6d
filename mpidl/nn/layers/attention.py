"""Self-attention."""

from __future__ import annotations

from mpidl.backend import Array, accumulator
from mpidl.nn.layer import Backward, Layer, Shape
from mpidl.nn.parameters import ParameterSpec


class SelfAttention(Layer):
    """Multi-head self-attention (Vaswani et al., 2017): x (n, t, width) to (n, t, width).

    Args:
        heads: Number of heads; must divide the width.
        causal: Mask later tokens.
    """

    kind = "self_attention"
    capturable = True

    def __init__(self, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 2 or shape[1] % self.heads:
            raise self.shape_error(
                shape,
                f"attention needs (tokens, width) with a width divisible by {self.heads} heads",
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
        unmasked = 0.5 if self.causal else 1.0
        return 8.0 * tokens * width * width + 4.0 * tokens * tokens * width * unmasked

    def activation_elements(self, shape: Shape) -> int:
        return shape[0] * (5 * shape[1] + self.heads)

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        n, t, width = x.shape
        dim = width // self.heads
        rows = x.reshape(-1, width)
        qkv = self._project("qkv", rows)
        q, k, v = self._split(qkv, n, t, dim)
        mixed = self.workspace.get("mixed", (n, t, self.heads, dim), x.dtype)
        lse = self.workspace.get("lse", (n, self.heads, t), accumulator(x.dtype))
        self.ops.attention_forward(q, k, v, mixed, lse, scale=dim**-0.5, causal=self.causal)
        mixed_rows = mixed.reshape(rows.shape)
        y = self._project("out", mixed_rows)

        def backward(dy: Array) -> Array | None:
            dmixed = self.workspace.get("dmixed", rows.shape, x.dtype)
            self._project_back("out", mixed_rows, dy.reshape(rows.shape), dmixed)
            dqkv = self.workspace.get("dqkv", qkv.shape, x.dtype)
            self.ops.attention_backward(
                dmixed.reshape(mixed.shape),
                *(q, k, v, mixed, lse),
                *self._split(dqkv, n, t, dim),
                scale=dim**-0.5,
                causal=self.causal,
            )
            dx = (
                self.workspace.get("dx", rows.shape, x.dtype) if self.needs_input_gradient else None
            )
            self._project_back("qkv", rows, dqkv, dx)
            return None if dx is None else dx.reshape(x.shape)

        return y.reshape(x.shape), backward

    def _project(self, name: str, x: Array) -> Array:
        """One of the two linear projections."""
        weight = self.value(f"{name}.weight")
        y = self.workspace.get(name, (x.shape[0], weight.shape[1]), x.dtype)
        self.ops.dense_forward(x, weight, self.value(f"{name}.bias"), y, relu=False)
        return y

    def _project_back(self, name: str, x: Array, dy: Array, dx: Array | None) -> None:
        weight, bias = f"{name}.weight", f"{name}.bias"
        self.ops.dense_backward(
            x, self.value(weight), dy, self.gradient(weight), self.gradient(bias), dx
        )

    def _split(self, qkv: Array, n: int, t: int, dim: int) -> tuple[Array, Array, Array]:
        """Views (n, t, heads, dim) of queries, keys and values."""
        whole = qkv.reshape(n, t, 3, self.heads, dim)
        return whole[:, :, 0], whole[:, :, 1], whole[:, :, 2]
