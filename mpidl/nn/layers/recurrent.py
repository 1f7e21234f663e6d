"""Recurrent layers."""

from __future__ import annotations

from mpidl.backend import Array, accumulator
from mpidl.nn.layer import Backward, Layer, Shape
from mpidl.nn.parameters import ParameterSpec


class _Recurrent(Layer):
    gates: int

    def __init__(self, units: int, *, sequences: bool = True) -> None:
        super().__init__()
        self.units, self.sequences = units, sequences

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 2:
            raise self._refuse(shape, "a recurrent layer needs (steps, inputs)")
        return (shape[0], self.units) if self.sequences else (self.units,)

    def declare(self, shape: Shape) -> list[ParameterSpec]:
        wide = self.gates * self.units
        return [
            ParameterSpec("x.weight", (shape[1], wide), "fan_uniform", fan_in=self.units),
            ParameterSpec("x.bias", (wide,)),
            ParameterSpec("h.weight", (self.units, wide), "fan_uniform", fan_in=self.units),
            ParameterSpec("h.bias", (wide,)),
        ]

    def flops(self, shape: Shape) -> float:
        return 2.0 * shape[0] * self.gates * self.units * (shape[1] + self.units)

    def stored(self, shape: Shape) -> int:
        return shape[0] * self.units * (self.gates + 2)

    def _inputs(self, x: Array) -> Array:
        """Pre-activations from the inputs of all steps, (t, n, gates * units), in one product."""
        n, t, width = x.shape
        turned = self.space.get("turned", (t, n, width), x.dtype)
        turned[...] = x.transpose(1, 0, 2)
        gates = self.space.get("gates", (t, n, self.gates * self.units), x.dtype)
        flat = gates.reshape(t * n, self.gates * self.units)
        self.ops.dense_forward(
            turned.reshape(t * n, width),
            self._value("x.weight"),
            self._value("x.bias"),
            flat,
            relu=False,
        )
        return gates

    def _output(self, h: Array) -> Array:
        """h (t + 1, n, units) as the layer's output."""
        if not self.sequences:
            return h[-1]
        y = self.space.get("y", (h.shape[1], h.shape[0] - 1, self.units), h.dtype)
        y[...] = h[1:].transpose(1, 0, 2)
        return y

    def _arriving(self, dy: Array, steps: int) -> Array:
        """Gradients (t, n, units) of the states from outside."""
        arriving = self.space.get("arriving", (steps, dy.shape[0], self.units), dy.dtype)
        arriving[...] = dy.transpose(1, 0, 2) if self.sequences else 0
        if not self.sequences:
            arriving[-1] = dy
        return arriving

    def _to_input(self, dgates: Array, x: Array) -> Array | None:
        n, t, width = x.shape
        flat, turned = dgates.reshape(t * n, -1), self.space.get("turned", (t, n, width), x.dtype)
        dx = self.space.get("dx", (t * n, width), x.dtype) if self.needs_input_gradient else None
        parts = self._gradient("x.weight"), self._gradient("x.bias")
        self.ops.dense_backward(
            turned.reshape(t * n, width), self._value("x.weight"), flat, *parts, dx
        )
        return None if dx is None else dx.reshape(t, n, width).transpose(1, 0, 2).copy()


class LSTM(_Recurrent):
    """x (n, steps, inputs) to (n, steps, units), or to the last state (n, units) without `sequences` (Hochreiter and
    Schmidhuber, 1997)."""

    kind, gates = "lstm", 4

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        n, t, _ = x.shape
        gates, ops, weight = self._inputs(x), self.ops, self._value("h.weight")
        exact = accumulator(x.dtype)
        h, c = (
            self.space.get(name, (t + 1, n, self.units), kind)
            for name, kind in (("h", x.dtype), ("c", exact))
        )
        h[0], c[0] = 0, 0
        ops.bias_act(gates.reshape(t * n, -1), self._value("h.bias"), relu=False)
        for step in range(t):
            ops.matmul(h[step], weight, gates[step], accumulate=True)
            ops.lstm_forward(gates[step], c[step], c[step + 1], h[step + 1])

        def backward(dy: Array) -> Array | None:
            arriving = self._arriving(dy, t)
            dc, dh = (
                self.space.get(name, (n, self.units), kind)
                for name, kind in (("dc", exact), ("dh", x.dtype))
            )
            dc[...], dh[...] = 0, 0
            w = self._value("h.weight")
            for step in range(t - 1, -1, -1):
                ops.add(dh, arriving[step], dh, relu=False)
                ops.lstm_backward(gates[step], c[step], c[step + 1], dh, dc)
                ops.matmul(gates[step], w.T, dh)
            flat = gates.reshape(t * n, -1)
            ops.matmul(h[:t].reshape(t * n, self.units).T, flat, self._gradient("h.weight"))
            ops.column_sums(flat, self._gradient("h.bias"))
            return self._to_input(gates, x)

        return self._output(h), backward


class GRU(_Recurrent):
    """x (n, steps, inputs) to (n, steps, units), or to the last state (n, units) without `sequences` (Cho et al., 2014).

    The reset gate acts after the recurrent product, as in cuDNN.
    """

    kind, gates = "gru", 3

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        n, t, _ = x.shape
        x_gates, ops, weight, bias = (
            self._inputs(x),
            self.ops,
            self._value("h.weight"),
            self._value("h.bias"),
        )
        h_gates = self.space.get("h_gates", x_gates.shape, x.dtype)
        h = self.space.get("h", (t + 1, n, self.units), x.dtype)
        h[0] = 0
        for step in range(t):
            ops.dense_forward(h[step], weight, bias, h_gates[step], relu=False)
            ops.gru_forward(x_gates[step], h_gates[step], h[step], h[step + 1])

        def backward(dy: Array) -> Array | None:
            arriving = self._arriving(dy, t)
            dh = self.space.get("dh", (n, self.units), x.dtype)
            dh[...] = 0
            w = self._value("h.weight")
            for step in range(t - 1, -1, -1):
                ops.add(dh, arriving[step], dh, relu=False)
                ops.gru_backward(x_gates[step], h_gates[step], h[step], dh)
                ops.matmul(h_gates[step], w.T, dh, accumulate=True)
            flat = h_gates.reshape(t * n, -1)
            ops.matmul(h[:t].reshape(t * n, self.units).T, flat, self._gradient("h.weight"))
            ops.column_sums(flat, self._gradient("h.bias"))
            return self._to_input(x_gates, x)

        return self._output(h), backward
