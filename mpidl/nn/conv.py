"""Two-dimensional convolution."""

from __future__ import annotations

from mpidl.backend import Array
from mpidl.backend.ops import Conv2DGeometry
from mpidl.nn.layer import Backward, Layer, Shape
from mpidl.nn.parameters import ParameterSpec


class Conv2D(Layer):
    """y (n, oh, ow, channels) = act(x (n, h, w, c) convolved with weight (kernel, kernel, c, channels) + bias).

    pad: zeros on each side; "same" keeps height and width (odd kernels, stride 1). act is ReLU where relu=True.
    """

    kind = "conv"

    def __init__(self, channels: int, kernel: int = 3, *, stride: int = 1, pad: int | str = "same", relu: bool = False) -> None:
        super().__init__()
        self.channels, self.kernel, self.stride, self.has_relu = channels, kernel, stride, relu
        self.pad = (kernel - 1) // 2 if isinstance(pad, str) else pad
        self.relu_is_masked = False  # True when the next layer's backward has applied the ReLU's gradient already

    def _geometry(self, shape: Shape) -> Conv2DGeometry:
        height, width, channels = shape
        return Conv2DGeometry(height, width, channels, self.channels, self.kernel, self.kernel, self.stride, self.pad)

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 3:
            raise self._refuse(shape, "a 2-D convolution needs (height, width, channels)")
        g = self._geometry(shape)
        if g.out_height < 1 or g.out_width < 1:
            raise self._refuse(shape, f"a kernel of {self.kernel} with padding {self.pad} does not fit into it")
        return g.out_height, g.out_width, self.channels

    def declare(self, shape: Shape) -> list[ParameterSpec]:
        k, init = self.kernel, "he_normal" if self.has_relu else "lecun_normal"
        return [
            ParameterSpec("weight", (k, k, shape[2], self.channels), init, fan_in=k * k * shape[2]),
            ParameterSpec("bias", (self.channels,)),
        ]

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        g = self._geometry(x.shape[1:])
        y = self.space.get("y", (x.shape[0], g.out_height, g.out_width, self.channels), x.dtype)
        self.ops.conv2d_forward(x, self._value("weight"), self._value("bias"), y, g, relu=self.has_relu)

        def backward(dy: Array) -> Array | None:
            if self.has_relu and not self.relu_is_masked:
                self.ops.relu_backward(dy, y, dy)
            self.ops.conv2d_backward_weights(x, dy, self._gradient("weight"), self._gradient("bias"), g)
            if not self.needs_input_gradient:
                return None
            dx = self.space.get("dx", x.shape, x.dtype)
            self.ops.conv2d_backward_input(dy, self._value("weight"), dx, g)
            return dx

        return y, backward
