"""Fully connected layer."""

from __future__ import annotations

from mpidl.backend import Array
from mpidl.nn.layer import Backward, Layer, Shape
from mpidl.nn.parameters import ParameterSpec


class Dense(Layer):
    """y (n, units) = act(x (n, inputs) @ weight (inputs, units) + bias (units)); act is ReLU where relu=True."""

    kind = "dense"

    def __init__(self, units: int, *, relu: bool = False) -> None:
        super().__init__()
        self.units, self.has_relu = units, relu

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 1:
            raise self._refuse(shape, "a dense layer needs vectors (put a flatten layer before it)")
        return (self.units,)

    def declare(self, shape: Shape) -> list[ParameterSpec]:
        init = "he_normal" if self.has_relu else "lecun_normal"
        return [
            ParameterSpec("weight", (shape[0], self.units), init, fan_in=shape[0]),
            ParameterSpec("bias", (self.units,)),
        ]

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        y = self.space.get("y", (x.shape[0], self.units), x.dtype)
        self.ops.dense_forward(x, self._value("weight"), self._value("bias"), y, relu=self.has_relu)

        def backward(dy: Array) -> Array | None:
            if self.has_relu:
                self.ops.relu_backward(dy, y, dy)
            dx = self.space.get("dx", x.shape, x.dtype) if self.needs_input_gradient else None
            gradients = self._gradient("weight"), self._gradient("bias")
            self.ops.dense_backward(x, self._value("weight"), dy, *gradients, dx)
            return dx

        return y, backward
