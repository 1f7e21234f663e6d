"""Normalization layers."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mpidl.backend import Array, accumulator
from mpidl.nn.layer import Backward, Layer, Shape
from mpidl.nn.parameters import ParameterSpec


class LayerNorm(Layer):
    """Each vector along the last axis to mean 0 and variance 1, then scale and bias (Ba et al., 2016)."""

    kind = "layernorm"
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
        y, exact = self.space.get("y", rows.shape, x.dtype), accumulator(x.dtype)
        mean, rstd = (self.space.get(name, (rows.shape[0],), exact) for name in ("mean", "rstd"))
        bias = self._value("bias") if self.center else None
        self.ops.row_norm_forward(
            rows, self._value("weight"), bias, y, mean, rstd, eps=self.eps, center=self.center
        )

        def backward(dy: Array) -> Array | None:
            dy = dy.reshape(rows.shape)
            dbias = self._gradient("bias") if self.center else None
            self.ops.row_norm_parameters(dy, rows, mean, rstd, self._gradient("weight"), dbias)
            if not self.needs_input_gradient:
                return None
            dx = self.space.get("dx", rows.shape, x.dtype)
            self.ops.row_norm_backward(
                dy, rows, self._value("weight"), mean, rstd, dx, center=self.center
            )
            return dx.reshape(x.shape)

        return y.reshape(x.shape), backward


class RMSNorm(LayerNorm):
    """Each vector along the last axis divided by its root mean square, then scaled (Zhang and Sennrich, 2019)."""

    kind = "rmsnorm"
    center = False


class BatchNorm(Layer):
    """Each channel (last axis) over batch and places to mean 0 and variance 1, then scale and bias (Ioffe and Szegedy, 2015).

    synchronized: statistics of the batches of all ranks together, exchanged in every pass (one small all-reduce each way).
    Without it ranks differ, and their running statistics are averaged where they are used. relu: ReLU after it. momentum:
    share of the newest
    batch in the running mean and (unbiased) variance, which stand in for the batch's outside training.
    """

    kind = "batchnorm"

    def __init__(
        self,
        *,
        relu: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
        synchronized: bool = True,
    ) -> None:
        super().__init__()
        self.has_relu, self.momentum, self.eps, self.needs_collective = (
            relu,
            momentum,
            eps,
            synchronized,
        )

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    def declare(self, shape: Shape) -> list[ParameterSpec]:
        c = (shape[-1],)
        return [
            ParameterSpec("weight", c, "ones"),
            ParameterSpec("bias", c),
            ParameterSpec("running_mean", c, trainable=False),
            ParameterSpec("running_var", c, "ones", trainable=False),
        ]

    def _over_ranks(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.needs_collective and self.runtime.reduce is not None:
            self.runtime.reduce(values)
        return values

    def _moments(self, x: Array) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """Mean, variance (c) and count over all ranks, in float64."""
        mean, m2 = (
            self.space.get(name, (1, x.shape[-1]), accumulator(x.dtype)) for name in ("mean", "m2")
        )
        self.ops.segment_moments(x, mean, m2)
        count, own = float(x.shape[1]), self.ops.to_host(mean)[0].astype(np.float64)
        sums = np.concatenate(([count], count * own, self.ops.to_host(m2)[0] + count * own**2))
        total, first, second = np.split(self._over_ranks(sums), (1, 1 + len(own)))
        n = max(float(total[0]), 1.0)
        return first / n, np.maximum(second / n - (first / n) ** 2, 0), n

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        flat = x.reshape(1, math.prod(x.shape[:-1]), x.shape[-1])
        if train:
            mean, variance, count = self._moments(flat)
            if not self.runtime.recomputing:
                self._follow(mean, variance * count / max(count - 1, 1))
        else:
            mean, variance = (
                self.ops.to_host(self._value(n)).astype(np.float64)
                for n in ("running_mean", "running_var")
            )
            count = 1.0
        rstd = 1 / np.sqrt(variance + self.eps)
        weight, bias = (
            self.ops.to_host(self._value(name)).astype(np.float64) for name in ("weight", "bias")
        )
        y = self.space.get("y", x.shape, x.dtype)
        scale, shift = (
            self._device(weight * rstd, "scale", x),
            self._device(bias - mean * weight * rstd, "shift", x),
        )
        self.ops.segment_affine(flat, scale, shift, None, y, relu=self.has_relu)
        center = self._device(mean, "center", x)

        def backward(dy: Array) -> Array | None:
            dy = dy.reshape(flat.shape)
            plain, along = (
                self.space.get(name, center.shape, center.dtype) for name in ("plain", "along")
            )
            self.ops.segment_dots(dy, flat, y if self.has_relu else None, center, plain, along)
            sums = np.concatenate(
                [self.ops.to_host(part)[0].astype(np.float64) for part in (plain, along)]
            )
            self._gradient("bias")[...] = plain[0]
            self._gradient("weight")[...] = self._device(sums[len(rstd) :] * rstd, "dw", x)[0]
            if not self.needs_input_gradient:
                return None
            sum_dy, sum_dyx = np.split(self._over_ranks(sums), 2)
            a = weight * rstd
            b = -a * rstd**2 * sum_dyx / count
            factors = [
                self._device(v, n, x)
                for v, n in ((a, "a"), (b, "b"), (-a * sum_dy / count - b * mean, "c"))
            ]
            self.ops.segment_dx(dy, flat, factors[0], factors[1], factors[2], dy)
            return dy.reshape(x.shape)

        return y, backward

    def _device(self, values: NDArray[np.float64], name: str, like: Array) -> Array:
        held = self.space.get(name, (1, len(values)), accumulator(like.dtype))
        held[0] = self.ops.to_device(values.astype(held.dtype))
        return held

    def _follow(self, mean: NDArray[np.float64], variance: NDArray[np.float64]) -> None:
        for name, newest in (("running_mean", mean), ("running_var", variance)):
            running = self._value(name)
            running *= running.dtype.type(1 - self.momentum)
            running += self.ops.to_device((self.momentum * newest).astype(running.dtype))


class GroupNorm(Layer):
    """Groups of channels of each sample to mean 0 and variance 1, then scale and bias (Wu and He, 2018)."""

    kind = "groupnorm"

    def __init__(self, groups: int = 8, *, relu: bool = False, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.has_relu, self.eps = groups, relu, eps

    def output_shape(self, shape: Shape) -> Shape:
        if shape[-1] % self.groups:
            raise self._refuse(
                shape, f"{self.groups} groups need a number of channels that they divide"
            )
        return shape

    def declare(self, shape: Shape) -> list[ParameterSpec]:
        return [ParameterSpec("weight", (shape[-1],), "ones"), ParameterSpec("bias", (shape[-1],))]

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        n, c, xp = x.shape[0], x.shape[-1], self.ops.xp
        flat, small, exact = x.reshape(n, math.prod(x.shape[1:-1]), c), (n, c), accumulator(x.dtype)
        mean, m2 = (self.space.get(name, small, exact) for name in ("mean", "m2"))
        self.ops.segment_moments(flat, mean, m2)
        rows, each = flat.shape[1], flat.shape[1] * c // self.groups
        center = self._spread(mean) * (rows / each)  # of each channel's group
        variance = self._spread(m2 + rows * (mean - center) ** 2) / each
        rstd = 1 / xp.sqrt(variance + exact.type(self.eps))
        scale = xp.ascontiguousarray((rstd * self._value("weight")).astype(exact))
        shift = xp.ascontiguousarray((self._value("bias") - center * scale).astype(exact))
        y = self.space.get("y", x.shape, x.dtype)
        self.ops.segment_affine(flat, scale, shift, None, y, relu=self.has_relu)
        center = xp.ascontiguousarray(center.astype(exact))

        def backward(dy: Array) -> Array | None:
            dy = dy.reshape(flat.shape)
            plain, along = (self.space.get(name, small, exact) for name in ("plain", "along"))
            self.ops.segment_dots(dy, flat, y if self.has_relu else None, center, plain, along)
            self._gradient("bias")[...] = plain.sum(axis=0)
            self._gradient("weight")[...] = (along * rstd).sum(axis=0)
            if not self.needs_input_gradient:
                return None
            weight = self._value("weight")
            b = -(rstd**3) * self._spread(along * weight) / each
            shift_back = -rstd * self._spread(plain * weight) / each - b * center
            factors = [xp.ascontiguousarray(f.astype(exact)) for f in (scale, b, shift_back)]
            self.ops.segment_dx(dy, flat, factors[0], factors[1], factors[2], dy)
            return dy.reshape(x.shape)

        return y, backward

    def _spread(self, values: Array) -> Array:
        """Sums (n, c) over the channels of each group, given to each of its channels."""
        n, c = values.shape
        sums = values.reshape(n, self.groups, c // self.groups).sum(axis=2)
        return self.ops.xp.repeat(sums, c // self.groups, axis=1)
