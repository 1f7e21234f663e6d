"""Convolutions of one to three dimensions, channels last."""

from __future__ import annotations

import math
from typing import Any

from mpidl.backend import Array
from mpidl.backend.contract.conv import ConvGeometry
from mpidl.backend.ops import Conv2DGeometry
from mpidl.nn.layer import Backward, Layer, Shape
from mpidl.nn.parameters import ParameterSpec

Extents = int | tuple[int, ...]
AXES = {
    1: "(steps, channels)",
    2: "(height, width, channels)",
    3: "(depth, height, width, channels)",
}


class _Conv(Layer):
    """Any convolution through columns; weight (*kernel, channels in / groups, channels)."""

    capturable = True

    dimensions: int

    def __init__(
        self, channels: int, kernel: Extents = 3, *, stride: Extents = 1, pad: Extents | str = "same", dilation: Extents = 1,
        groups: int = 1, bias: bool = True, relu: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.channels, self.groups, self.bias, self.has_relu = channels, groups, bias, relu
        self.kernel_size, self.strides, self.dilation = (
            self._each(value) for value in (kernel, stride, dilation)
        )
        same = tuple(d * (k - 1) // 2 for k, d in zip(self.kernel_size, self.dilation, strict=True))
        self.pads = same if isinstance(pad, str) else self._each(pad)
        self.relu_is_masked = (
            False  # True when the next layer's backward has applied the ReLU's gradient already
        )

    def _each(self, value: Extents) -> tuple[int, ...]:
        result = (value,) * self.dimensions if isinstance(value, int) else tuple(value)
        if len(result) != self.dimensions:
            raise ValueError(f"{value} should have {self.dimensions} extents")
        return result

    def _three(self, value: tuple[int, ...], fill: int) -> Any:
        return (fill,) * (3 - self.dimensions) + value

    def _general(self, shape: Shape) -> ConvGeometry:
        return ConvGeometry(
            self._three(shape[:-1], 1), shape[-1], self.channels, self._three(self.kernel_size, 1),
            self._three(self.strides, 1),
            self._three(self.pads, 0), self._three(self.dilation, 1), self.groups,
        )  # fmt: skip

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != self.dimensions + 1:
            raise self._refuse(
                shape, f"a {self.dimensions}-D convolution needs {AXES[self.dimensions]}"
            )
        if shape[-1] % self.groups or self.channels % self.groups:
            raise self._refuse(
                shape, f"{self.groups} groups must divide {shape[-1]} and {self.channels} channels"
            )
        out = self._general(shape).out_size[3 - self.dimensions :]
        if min(out) < 1:
            raise self._refuse(
                shape,
                f"a kernel of {self.kernel_size} with padding {self.pads} does not fit into it",
            )
        return (*out, self.channels)

    def declare(self, shape: Shape) -> list[ParameterSpec]:
        each = shape[-1] // self.groups
        fan_in = math.prod(self.kernel_size) * each
        init = "he_normal" if self.has_relu else "lecun_normal"
        weight = ParameterSpec(
            "weight", (*self.kernel_size, each, self.channels), init, fan_in=fan_in
        )
        return [weight, ParameterSpec("bias", (self.channels,))] if self.bias else [weight]

    def flops(self, shape: Shape) -> float:
        return (
            2.0
            * math.prod(self.output_shape(shape))
            * math.prod(self.kernel_size)
            * shape[-1]
            / self.groups
        )

    def _forward(self, x: Array, y: Array) -> None:
        self.ops.conv_forward(
            x,
            self._value("weight"),
            self._value("bias") if self.bias else None,
            y,
            self._general(x.shape[1:]),
        )
        if self.has_relu:
            self.ops.relu_forward(y, y)

    def _backward(self, x: Array, dy: Array, dx: Array | None) -> None:
        g = self._general(x.shape[1:])
        self.ops.conv_backward_weights(
            x, dy, self._gradient("weight"), self._gradient("bias") if self.bias else None, g
        )
        if dx is not None:
            self.ops.conv_backward_input(dy, self._value("weight"), dx, g)

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        y = self.space.get("y", (x.shape[0], *self.output_shape(x.shape[1:])), x.dtype)
        self._forward(x, y)

        def backward(dy: Array) -> Array | None:
            dy = dy.reshape(y.shape)
            if self.has_relu and not self.relu_is_masked:
                self.ops.relu_backward(dy, y, dy)
            dx = self.space.get("dx", x.shape, x.dtype) if self.needs_input_gradient else None
            self._backward(x, dy, dx)
            return dx

        return y, backward


class Conv1D(_Conv):
    """y (n, steps, channels) = act(x (n, steps, c) convolved with weight (kernel, c / groups, channels) + bias)."""

    kind, dimensions = "conv1d", 1


class Conv3D(_Conv):
    """y (n, d, h, w, channels) = act(x (n, d, h, w, c) convolved with weight (kd, kh, kw, c / groups, channels) + bias)."""

    kind, dimensions = "conv3d", 3


class Conv2D(_Conv):
    """y (n, oh, ow, channels) = act(x (n, h, w, c) convolved with weight (kh, kw, c / groups, channels) + bias).

    pad: zeros on each side; "same" keeps height and width (odd kernels, stride 1). act is ReLU where relu=True.
    """

    kind, dimensions = "conv", 2
    capturable = True

    def _simple(self, shape: Shape) -> Conv2DGeometry | None:
        """What the fast kernels need: one group, no gaps, square stride and padding."""
        even = len(set(self.strides)) == len(set(self.pads)) == 1 and set(self.dilation) == {1}
        if self.groups > 1 or not even:
            return None
        (height, width, channels), (kh, kw) = shape, self.kernel_size
        return Conv2DGeometry(
            height, width, channels, self.channels, kh, kw, self.strides[0], self.pads[0]
        )

    def _forward(self, x: Array, y: Array) -> None:
        g = self._simple(x.shape[1:])
        if g is None:
            super()._forward(x, y)
        else:
            self.ops.conv2d_forward(
                x,
                self._value("weight"),
                self._value("bias") if self.bias else None,
                y,
                g,
                relu=self.has_relu,
            )

    def _backward(self, x: Array, dy: Array, dx: Array | None) -> None:
        g = self._simple(x.shape[1:])
        if g is None:
            super()._backward(x, dy, dx)
            return
        self.ops.conv2d_backward_weights(
            x, dy, self._gradient("weight"), self._gradient("bias") if self.bias else None, g
        )
        if dx is not None:
            self.ops.conv2d_backward_input(dy, self._value("weight"), dx, g)


class ConvTranspose2D(Layer):
    """The gradient of a convolution as a layer: y (n, (h - 1) stride + k - 2 pad, ..., channels), weight (k, k, channels,
    c)."""

    kind = "convt"
    capturable = True

    def __init__(
        self, channels: int, kernel: int = 2, *, stride: int = 2, pad: int = 0, relu: bool = False
    ) -> None:
        super().__init__()
        self.channels, self.kernel, self.stride, self.pad, self.has_relu = (
            channels,
            kernel,
            stride,
            pad,
            relu,
        )

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 3:
            raise self._refuse(shape, f"a 2-D convolution needs {AXES[2]}")
        height, width = (
            (extent - 1) * self.stride + self.kernel - 2 * self.pad for extent in shape[:2]
        )
        if min(height, width) < 1:
            raise self._refuse(
                shape, f"padding of {self.pad} leaves nothing of a kernel of {self.kernel}"
            )
        return height, width, self.channels

    def declare(self, shape: Shape) -> list[ParameterSpec]:
        k, init = self.kernel, "he_normal" if self.has_relu else "lecun_normal"
        fan_in = max(1, k * k // self.stride**2) * shape[2]
        weight = ParameterSpec("weight", (k, k, self.channels, shape[2]), init, fan_in=fan_in)
        return [weight, ParameterSpec("bias", (self.channels,))]

    def flops(self, shape: Shape) -> float:
        return 2.0 * math.prod(shape) * self.kernel**2 * self.channels

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        height, width, _ = self.output_shape(x.shape[1:])
        g = ConvGeometry(
            (1, height, width), self.channels, x.shape[-1], (1, self.kernel, self.kernel), (1, self.stride, self.stride),
            (0, self.pad, self.pad),
        )  # fmt: skip
        y = self.space.get("y", (x.shape[0], height, width, self.channels), x.dtype)
        self.ops.conv_backward_input(x, self._value("weight"), y, g)
        self.ops.bias_act(y.reshape(-1, self.channels), self._value("bias"), relu=self.has_relu)

        def backward(dy: Array) -> Array | None:
            dy = dy.reshape(y.shape)
            if self.has_relu:
                self.ops.relu_backward(dy, y, dy)
            self.ops.conv_backward_weights(dy, x, self._gradient("weight"), None, g)
            self.ops.column_sums(dy.reshape(-1, self.channels), self._gradient("bias"))
            if not self.needs_input_gradient:
                return None
            dx = self.space.get("dx", x.shape, x.dtype)
            self.ops.conv_forward(dy, self._value("weight"), None, dx, g)
            return dx

        return y, backward
