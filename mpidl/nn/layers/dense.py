"""Fully connected layer."""

from __future__ import annotations

import math

from mpidl.backend import Array
from mpidl.nn.layer import Backward, Layer, Shape
from mpidl.nn.layers.activation import check_activation
from mpidl.nn.parameters import ParameterSpec


class Dense(Layer):
    """y (..., units) = act(x (..., inputs) @ weight (inputs, units) + bias (units)).

    Args:
        units: Number of outputs.
        relu: Short for activation="relu".
        activation: Activation function, a key of `mpidl.backend.contract.pointwise.ACTIVATIONS`.
        bias: Whether to add a bias.
        init: Initializer of the weight, a key of `mpidl.nn.init.INITIALIZERS`; by default he_normal
            with a ReLU, else lecun_normal.
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
        if relu:
            activation = "relu"
        if activation is not None:
            check_activation(activation)
        self.units = units
        self.bias = bias
        self.init = init
        # The kernel that adds the bias also applies a ReLU, so that no second array is kept for the
        # backward pass. Without a bias there is no such kernel.
        self.has_relu = activation == "relu" and bias
        self.activation = None if self.has_relu else activation

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) in (0, 3):  # an image was most likely meant to be flattened
            raise self.shape_error(
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

    def activation_elements(self, shape: Shape) -> int:
        return math.prod(self.output_shape(shape)) * (2 if self.activation else 1)

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        rows = x.reshape(-1, x.shape[-1])
        z = self.workspace.get("z", (rows.shape[0], self.units), x.dtype)
        bias = self.value("bias") if self.bias else None
        self.ops.dense_forward(rows, self.value("weight"), bias, z, relu=self.has_relu)
        y = z
        if self.activation:
            y = self.workspace.get("y", z.shape, z.dtype)
            self.ops.act_forward(z, y, self.activation)

        def backward(dy: Array) -> Array | None:
            dy = dy.reshape(z.shape)
            if self.has_relu:
                self.ops.relu_backward(dy, y, dy)
            elif self.activation:
                self.ops.act_backward(dy, z, y, dy, self.activation)
            dx = (
                self.workspace.get("dx", rows.shape, x.dtype) if self.needs_input_gradient else None
            )
            dbias = self.gradient("bias") if self.bias else None
            self.ops.dense_backward(
                rows, self.value("weight"), dy, self.gradient("weight"), dbias, dx
            )
            return None if dx is None else dx.reshape(x.shape)

        return y.reshape(*x.shape[:-1], self.units), backward
