"""Convolutions of one to three dimensions, channels last."""

from __future__ import annotations

import math
from typing import Any

from mpidl.backend import Array
from mpidl.backend.contract.conv import ConvGeometry
from mpidl.errors import ConfigError
from mpidl.nn.layer import Backward, Layer, Shape
from mpidl.nn.parameters import ParameterSpec

Sizes = int | tuple[int, ...]
AXES = {
    1: "(steps, channels)",
    2: "(height, width, channels)",
    3: "(depth, height, width, channels)",
}


class _Conv(Layer, base=True):
    """Base of the convolutions, by im2col and matrix products; see Conv2D for the arguments.

    Attributes:
        relu_gradient_is_fused: Whether the backward pass of the next layer includes the ReLU; set
            by `mpidl.nn.fuse`.
    """

    capturable = True
    dimensions: int

    def __init__(
        self,
        channels: int,
        kernel: Sizes = 3,
        *,
        stride: Sizes = 1,
        pad: Sizes | str = "same",
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        relu: bool = False,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.groups = groups
        self.bias = bias
        self.has_relu = relu
        self.kernel_size = self._per_axis(kernel)
        self.strides = self._per_axis(stride)
        self.dilation = self._per_axis(dilation)
        same = tuple(d * (k - 1) // 2 for k, d in zip(self.kernel_size, self.dilation, strict=True))
        self.pads = same if isinstance(pad, str) else self._per_axis(pad)
        self.relu_gradient_is_fused = False

    def _per_axis(self, value: Sizes) -> tuple[int, ...]:
        sizes = (value,) * self.dimensions if isinstance(value, int) else tuple(value)
        if len(sizes) != self.dimensions:
            raise ConfigError(
                f"{value} does not fit a convolution over {self.dimensions} axes",
                where=type(self).__name__,
                remedy=f"give one number for all axes, or {self.dimensions} numbers",
            )
        return sizes

    def _pad_to_3d(self, value: tuple[int, ...], fill: int) -> Any:
        return (fill,) * (3 - self.dimensions) + value

    def _geometry(self, shape: Shape) -> ConvGeometry:
        """Geometry for the general kernels, which always have three axes."""
        return ConvGeometry(
            self._pad_to_3d(shape[:-1], 1),
            shape[-1],
            self.channels,
            self._pad_to_3d(self.kernel_size, 1),
            self._pad_to_3d(self.strides, 1),
            self._pad_to_3d(self.pads, 0),
            self._pad_to_3d(self.dilation, 1),
            self.groups,
        )

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != self.dimensions + 1:
            raise self.shape_error(
                shape, f"a {self.dimensions}-D convolution needs {AXES[self.dimensions]}"
            )
        if shape[-1] % self.groups or self.channels % self.groups:
            raise self.shape_error(
                shape, f"{self.groups} groups must divide {shape[-1]} and {self.channels} channels"
            )
        out = self._geometry(shape).out_size[3 - self.dimensions :]
        if min(out) < 1:
            raise self.shape_error(
                shape,
                f"the kernel {self.kernel_size} with padding {self.pads} is larger",
            )
        return (*out, self.channels)

    def declare(self, shape: Shape) -> list[ParameterSpec]:
        inputs = shape[-1] // self.groups
        weight = ParameterSpec(
            "weight",
            (*self.kernel_size, inputs, self.channels),
            "he_normal" if self.has_relu else "lecun_normal",
            fan_in=math.prod(self.kernel_size) * inputs,
        )
        return [weight, ParameterSpec("bias", (self.channels,))] if self.bias else [weight]

    def flops(self, shape: Shape) -> float:
        products = math.prod(self.kernel_size) * shape[-1] / self.groups
        return 2.0 * math.prod(self.output_shape(shape)) * products

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        y = self.workspace.get("y", (x.shape[0], *self.output_shape(x.shape[1:])), x.dtype)
        self.convolve(x, y, self.value("bias") if self.bias else None)

        def backward(dy: Array) -> Array | None:
            dy = dy.reshape(y.shape)
            if self.has_relu and not self.relu_gradient_is_fused:
                self.ops.relu_backward(dy, y, dy)
            dx = self.workspace.get("dx", x.shape, x.dtype) if self.needs_input_gradient else None
            self._backward(x, dy, self.gradient("bias") if self.bias else None, dx)
            return dx

        return y, backward

    def convolve(self, x: Array, y: Array, bias: Array | None, **more: Any) -> None:
        """y = act(x convolved with the weight + bias); `more` is for `ops.conv_forward`."""
        g = self._geometry(x.shape[1:])
        self.ops.conv_forward(x, self.value("weight"), bias, y, g, relu=self.has_relu, **more)

    def _backward(self, x: Array, dy: Array, dbias: Array | None, dx: Array | None) -> None:
        g = self._geometry(x.shape[1:])
        self.ops.conv_backward_weights(x, dy, self.gradient("weight"), dbias, g)
        if dx is not None:
            self.ops.conv_backward_input(dy, self.value("weight"), dx, g)


class Conv1D(_Conv):
    """y (n, steps, channels) = act(x (n, steps, c) * weight (kernel, c / groups, channels) + bias).

    Arguments as of `Conv2D`, for one axis.
    """

    kind = "conv1d"
    dimensions = 1


class Conv3D(_Conv):
    """y (n, d, h, w, channels) = act(x (n, d, h, w, c) convolved with weight + bias).

    weight is (kd, kh, kw, c / groups, channels). Arguments as of `Conv2D`, for three axes.
    """

    kind = "conv3d"
    dimensions = 3


class Conv2D(_Conv):
    """y (n, oh, ow, channels) = act(x (n, h, w, c) convolved with weight + bias).

    weight is (kh, kw, c / groups, channels).

    Args:
        channels: Number of output channels.
        kernel: Kernel size; like the next three one number for all axes, or one per axis.
        stride: Stride of the kernel.
        pad: Zeros added on each side; "same" keeps height and width (odd kernels, stride 1).
        dilation: Distance between adjacent kernel elements.
        groups: Number of blocks of channels that are convolved separately.
        bias: Whether to add a bias.
        relu: Apply a ReLU to the output.
    """

    kind = "conv2d"
    dimensions = 2


class ConvTranspose2D(Layer):
    """Transposed convolution: the gradient of a convolution with respect to its input.

    x (n, h, w, c) to y (n, (h - 1) stride + kernel - 2 pad, ..., channels); weight is (kernel,
    kernel, channels, c).

    Args:
        channels: Number of output channels.
        kernel: Height and width of the kernel.
        stride: Stride of the convolution whose gradient this is: the upsampling factor.
        pad: Pixels removed on each side of the output.
        relu: Apply a ReLU to the output.
    """

    kind = "conv_transpose2d"
    capturable = True

    def __init__(
        self, channels: int, kernel: int = 2, *, stride: int = 2, pad: int = 0, relu: bool = False
    ) -> None:
        super().__init__()
        self.channels = channels
        self.kernel = kernel
        self.stride = stride
        self.pad = pad
        self.has_relu = relu

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 3:
            raise self.shape_error(shape, f"a 2-D convolution needs {AXES[2]}")
        height, width = (
            (size - 1) * self.stride + self.kernel - 2 * self.pad for size in shape[:2]
        )
        if min(height, width) < 1:
            raise self.shape_error(
                shape, f"with padding {self.pad} and kernel {self.kernel} the output is empty"
            )
        return height, width, self.channels

    def declare(self, shape: Shape) -> list[ParameterSpec]:
        k = self.kernel
        init = "he_normal" if self.has_relu else "lecun_normal"
        fan_in = max(1, k * k // self.stride**2) * shape[2]
        weight = ParameterSpec("weight", (k, k, self.channels, shape[2]), init, fan_in=fan_in)
        return [weight, ParameterSpec("bias", (self.channels,))]

    def flops(self, shape: Shape) -> float:
        return 2.0 * math.prod(shape) * self.kernel**2 * self.channels

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        height, width, _ = self.output_shape(x.shape[1:])
        g = ConvGeometry(
            (1, height, width),
            self.channels,
            x.shape[-1],
            (1, self.kernel, self.kernel),
            (1, self.stride, self.stride),
            (0, self.pad, self.pad),
        )
        y = self.workspace.get("y", (x.shape[0], height, width, self.channels), x.dtype)
        self.ops.conv_backward_input(x, self.value("weight"), y, g)
        self.ops.bias_act(y.reshape(-1, self.channels), self.value("bias"), relu=self.has_relu)

        def backward(dy: Array) -> Array | None:
            dy = dy.reshape(y.shape)
            if self.has_relu:
                self.ops.relu_backward(dy, y, dy)
            self.ops.conv_backward_weights(dy, x, self.gradient("weight"), None, g)
            self.ops.column_sums(dy.reshape(-1, self.channels), self.gradient("bias"))
            if not self.needs_input_gradient:
                return None
            dx = self.workspace.get("dx", x.shape, x.dtype)
            self.ops.conv_forward(dy, self.value("weight"), None, dx, g)
            return dx

        return y, backward
