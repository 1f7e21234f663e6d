"""Layer norm, RMS norm and group norm; for batch norm see `batch_norm`."""

from __future__ import annotations

import math

from mpidl.backend import Array, accumulator
from mpidl.nn.layer import Backward, Layer, Shape
from mpidl.nn.parameters import ParameterSpec


class LayerNorm(Layer):
    """Layer normalization over the last axis, with scale and bias (Ba et al., 2016).

    Args:
        eps: Added to the variance.
    """

    kind = "layer_norm"
    capturable = True
    center = True

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    def declare(self, shape: Shape) -> list[ParameterSpec]:
        scale = ParameterSpec("weight", (shape[-1],), "ones")
        return [scale, ParameterSpec("bias", (shape[-1],))] if self.center else [scale]

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        rows = x.reshape(-1, x.shape[-1])
        y = self.workspace.get("y", rows.shape, x.dtype)
        mean = self.workspace.get("mean", (len(rows),), accumulator(x.dtype))
        rstd = self.workspace.get("rstd", (len(rows),), accumulator(x.dtype))
        bias = self.value("bias") if self.center else None
        self.ops.row_norm_forward(
            rows, self.value("weight"), bias, y, mean, rstd, eps=self.eps, center=self.center
        )

        def backward(dy: Array) -> Array | None:
            dy = dy.reshape(rows.shape)
            dbias = self.gradient("bias") if self.center else None
            self.ops.row_norm_parameters(dy, rows, mean, rstd, self.gradient("weight"), dbias)
            if not self.needs_input_gradient:
                return None
            dx = self.workspace.get("dx", rows.shape, x.dtype)
            self.ops.row_norm_backward(
                dy, rows, self.value("weight"), mean, rstd, dx, center=self.center
            )
            return dx.reshape(x.shape)

        return y.reshape(x.shape), backward


class RMSNorm(LayerNorm):
    """Division by the root mean square over the last axis, with scale (Zhang and Sennrich, 2019).

    Args:
        eps: Added to the mean square.
    """

    kind = "rms_norm"
    center = False


class GroupNorm(Layer):
    """Group normalization of the channels (last axis), with scale and bias (Wu and He, 2018).

    Args:
        groups: Number of groups; must divide the number of channels.
        relu: Apply a ReLU to the output.
        eps: Added to the variance.
    """

    kind = "group_norm"

    def __init__(self, groups: int = 8, *, relu: bool = False, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups = groups
        self.has_relu = relu
        self.eps = eps

    def output_shape(self, shape: Shape) -> Shape:
        if shape[-1] % self.groups:
            raise self.shape_error(
                shape, f"the number of channels must be divisible by {self.groups} groups"
            )
        return shape

    def declare(self, shape: Shape) -> list[ParameterSpec]:
        return [ParameterSpec("weight", (shape[-1],), "ones"), ParameterSpec("bias", (shape[-1],))]

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        xp = self.ops.xp
        n, c = x.shape[0], x.shape[-1]
        flat = x.reshape(n, math.prod(x.shape[1:-1]), c)
        accum_dtype = accumulator(x.dtype)
        mean = self.workspace.get("mean", (n, c), accum_dtype)
        m2 = self.workspace.get("m2", (n, c), accum_dtype)
        self.ops.segment_moments(flat, mean, m2)
        rows = flat.shape[1]
        size = rows * c // self.groups  # of a group
        center = self._sum_groups(mean) * (rows / size)
        variance = self._sum_groups(m2 + rows * (mean - center) ** 2) / size
        rstd = 1 / xp.sqrt(variance + accum_dtype.type(self.eps))
        scale = xp.ascontiguousarray((rstd * self.value("weight")).astype(accum_dtype))
        shift = xp.ascontiguousarray((self.value("bias") - center * scale).astype(accum_dtype))
        y = self.workspace.get("y", x.shape, x.dtype)
        self.ops.segment_affine(flat, scale, shift, None, y, relu=self.has_relu)
        center = xp.ascontiguousarray(center.astype(accum_dtype))

        def backward(dy: Array) -> Array | None:
            dy = dy.reshape(flat.shape)
            sum_dy = self.workspace.get("sum_dy", (n, c), accum_dtype)
            sum_dyx = self.workspace.get("sum_dyx", (n, c), accum_dtype)
            self.ops.segment_dots(dy, flat, y if self.has_relu else None, center, sum_dy, sum_dyx)
            self.gradient("bias")[...] = sum_dy.sum(axis=0)
            self.gradient("weight")[...] = (sum_dyx * rstd).sum(axis=0)
            if not self.needs_input_gradient:
                return None
            weight = self.value("weight")
            b = -(rstd**3) * self._sum_groups(sum_dyx * weight) / size
            shift_back = -rstd * self._sum_groups(sum_dy * weight) / size - b * center
            factors = [xp.ascontiguousarray(f.astype(accum_dtype)) for f in (scale, b, shift_back)]
            self.ops.segment_dx(dy, flat, factors[0], factors[1], factors[2], dy)
            return dy.reshape(x.shape)

        return y, backward

    def _sum_groups(self, values: Array) -> Array:
        """Sum values (n, c) over the channels of each group; every channel gets its group's sum."""
        n, c = values.shape
        sums = values.reshape(n, self.groups, c // self.groups).sum(axis=2)
        repeated: Array = self.ops.xp.repeat(sums, c // self.groups, axis=1)
        return repeated
