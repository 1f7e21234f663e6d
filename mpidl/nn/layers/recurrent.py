"""Recurrent layers."""

from __future__ import annotations

from mpidl.backend import Array, accumulator
from mpidl.nn.layer import Backward, Layer, Shape
from mpidl.nn.parameters import ParameterSpec


class _Recurrent(Layer, base=True):
    """Base of recurrent layers; states and gates are time-major, (t, n, ...)."""

    gates: int

    def __init__(self, units: int, *, sequences: bool = True) -> None:
        super().__init__()
        self.units = units
        self.sequences = sequences

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 2:
            raise self.shape_error(shape, "a recurrent layer needs (steps, inputs)")
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

    def activation_elements(self, shape: Shape) -> int:
        return shape[0] * self.units * (self.gates + 2)

    def _input_gates(self, x: Array) -> Array:
        """Contribution (t, n, gates * units) of the inputs to the gates, one product for all."""
        n, t, width = x.shape
        time_major = self.workspace.get("time_major", (t, n, width), x.dtype)
        time_major[...] = x.transpose(1, 0, 2)
        gates = self.workspace.get("gates", (t, n, self.gates * self.units), x.dtype)
        self.ops.dense_forward(
            time_major.reshape(t * n, width),
            self.value("x.weight"),
            self.value("x.bias"),
            gates.reshape(t * n, self.gates * self.units),
            relu=False,
        )
        return gates

    def _output(self, h: Array) -> Array:
        """Output of the layer from the states h (t + 1, n, units)."""
        if not self.sequences:
            return h[-1]
        y = self.workspace.get("y", (h.shape[1], h.shape[0] - 1, self.units), h.dtype)
        y[...] = h[1:].transpose(1, 0, 2)
        return y

    def _state_gradients(self, dy: Array, steps: int) -> Array:
        """Gradients (t, n, units) of the states with respect to the output alone."""
        dy_steps = self.workspace.get("dy_steps", (steps, dy.shape[0], self.units), dy.dtype)
        dy_steps[...] = dy.transpose(1, 0, 2) if self.sequences else 0
        if not self.sequences:
            dy_steps[-1] = dy
        return dy_steps

    def _state_weights(self, h: Array, dgates: Array) -> None:
        """Gradients of the recurrent weights, one product for all steps."""
        flat = dgates.reshape(-1, self.gates * self.units)
        states = h[:-1].reshape(len(flat), self.units)
        self.ops.matmul(states.T, flat, self.gradient("h.weight"))
        self.ops.column_sums(flat, self.gradient("h.bias"))

    def _input_gradient(self, dgates: Array, x: Array) -> Array | None:
        """Gradients of the input weights; returns that of the input."""
        n, t, width = x.shape
        time_major = self.workspace.get("time_major", (t, n, width), x.dtype)
        dx = (
            self.workspace.get("dx", (t * n, width), x.dtype) if self.needs_input_gradient else None
        )
        self.ops.dense_backward(
            time_major.reshape(t * n, width),
            self.value("x.weight"),
            dgates.reshape(t * n, -1),
            self.gradient("x.weight"),
            self.gradient("x.bias"),
            dx,
        )
        return None if dx is None else dx.reshape(t, n, width).transpose(1, 0, 2).copy()


class LSTM(_Recurrent):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997): x (n, steps, inputs).

    Args:
        units: Size of the state.
        sequences: Return the states of all steps, (n, steps, units); else the last, (n, units).
    """

    kind = "lstm"
    gates = 4

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        n, t, _ = x.shape
        ops, weight = self.ops, self.value("h.weight")
        accum_dtype = accumulator(x.dtype)
        gates = self._input_gates(x)
        h = self.workspace.get("h", (t + 1, n, self.units), x.dtype)
        c = self.workspace.get("c", (t + 1, n, self.units), accum_dtype)
        h[0] = 0
        c[0] = 0
        ops.bias_act(gates.reshape(t * n, -1), self.value("h.bias"), relu=False)
        for step in range(t):
            ops.matmul(h[step], weight, gates[step], accumulate=True)
            ops.lstm_forward(gates[step], c[step], c[step + 1], h[step + 1])

        def backward(dy: Array) -> Array | None:
            dy_steps = self._state_gradients(dy, t)
            dc = self.workspace.get("dc", (n, self.units), accum_dtype)
            dh = self.workspace.get("dh", (n, self.units), x.dtype)
            dc[...] = 0
            dh[...] = 0
            w = self.value("h.weight")
            for step in range(t - 1, -1, -1):
                ops.add(dh, dy_steps[step], dh, relu=False)
                ops.lstm_backward(gates[step], c[step], c[step + 1], dh, dc)
                ops.matmul(gates[step], w.T, dh)
            self._state_weights(h, gates)
            return self._input_gradient(gates, x)

        return self._output(h), backward


class GRU(_Recurrent):
    """Gated recurrent unit (Cho et al., 2014): x (n, steps, inputs).

    The reset gate is applied after the recurrent product, as in cuDNN.

    Args:
        units: Size of the state.
        sequences: Return the states of all steps, (n, steps, units); else the last, (n, units).
    """

    kind = "gru"
    gates = 3

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        n, t, _ = x.shape
        ops, weight, bias = self.ops, self.value("h.weight"), self.value("h.bias")
        x_gates = self._input_gates(x)
        h_gates = self.workspace.get("h_gates", x_gates.shape, x.dtype)
        h = self.workspace.get("h", (t + 1, n, self.units), x.dtype)
        h[0] = 0
        for step in range(t):
            ops.dense_forward(h[step], weight, bias, h_gates[step], relu=False)
            ops.gru_forward(x_gates[step], h_gates[step], h[step], h[step + 1])

        def backward(dy: Array) -> Array | None:
            dy_steps = self._state_gradients(dy, t)
            dh = self.workspace.get("dh", (n, self.units), x.dtype)
            dh[...] = 0
            w = self.value("h.weight")
            for step in range(t - 1, -1, -1):
                ops.add(dh, dy_steps[step], dh, relu=False)
                ops.gru_backward(x_gates[step], h_gates[step], h[step], dh)
                ops.matmul(h_gates[step], w.T, dh, accumulate=True)
            self._state_weights(h, h_gates)
            return self._input_gradient(x_gates, x)

        return self._output(h), backward
