"""Fully connected layer."""

from __future__ import annotations

import math

from mpidl.backend import Array
from mpidl.nn.layer import Backward, Layer, Shape
from mpidl.nn.parameters import ParameterSpec


class Dense(Layer):
    """y (..., units) = act(x (..., inputs) @ weight (inputs, units) + bias (units)), on the last axis.

    relu, activation: ReLU, or a name from `mpidl.backend.contract.pointwise.ACTIVATIONS`. init: of the weight, see
    `mpidl.nn.init`.
    """

    kind = "dense"
    capturable = True

    def __init__(
        self,
        units: int,
        *,
        relu: bool = False,
        activation: str | None = None,
        bias: bool = True,
        init: str | None = None,
    ) -> None:
        super().__init__()
        self.units, self.bias, self.init = units, bias, init
        self.has_relu = (relu or activation == "relu") and bias
        self.activation = None if self.has_relu else "relu" if relu else activation

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) in (0, 3):
            raise self._refuse(
                shape,
                "a dense layer needs vectors (put a flatten layer before it) or sequences of them",
            )
        return (*shape[:-1], self.units)

    def declare(self, shape: Shape) -> list[ParameterSpec]:
        init = self.init or ("he_normal" if self.has_relu else "lecun_normal")
        weight = ParameterSpec("weight", (shape[-1], self.units), init, fan_in=shape[-1])
        return [weight, ParameterSpec("bias", (self.units,))] if self.bias else [weight]

    def flops(self, shape: Shape) -> float:
        return 2.0 * math.prod(shape) * self.units

    def stored(self, shape: Shape) -> int:
        return math.prod(self.output_shape(shape)) * (2 if self.activation else 1)

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        flat = x.reshape(-1, x.shape[-1])
        z = self.space.get("z", (flat.shape[0], self.units), x.dtype)
        self.ops.dense_forward(
            flat,
            self._value("weight"),
            self._value("bias") if self.bias else None,
            z,
            relu=self.has_relu,
        )
        y = z
        if self.activation:
            y = self.space.get("y", z.shape, z.dtype)
            self.ops.act_forward(z, y, self.activation)

        def backward(dy: Array) -> Array | None:
            dy = dy.reshape(z.shape)
            if self.has_relu:
                self.ops.relu_backward(dy, y, dy)
            elif self.activation:
                self.ops.act_backward(dy, z, y, dy, self.activation)
            dx = self.space.get("dx", flat.shape, x.dtype) if self.needs_input_gradient else None
            bias = self._gradient("bias") if self.bias else None
            self.ops.dense_backward(
                flat, self._value("weight"), dy, self._gradient("weight"), bias, dx
            )
            return None if dx is None else dx.reshape(x.shape)

        return y.reshape(*x.shape[:-1], self.units), backward
