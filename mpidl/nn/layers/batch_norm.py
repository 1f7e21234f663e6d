"""Batch normalization, synchronized over the ranks or not."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mpidl.backend import Array, accumulator
from mpidl.nn.layer import Backward, Layer, Shape
from mpidl.nn.parameters import ParameterSpec

Vector = NDArray[np.float64]


class BatchNorm(Layer):
    """Batch normalization of the channels (last axis), with scale and bias.

    Ioffe and Szegedy, 2015. Statistics are taken over batch and positions; outside training the
    running statistics replace them.

    Args:
        relu: Apply a ReLU to the output.
        momentum: Weight of the latest batch in the running mean and (unbiased) variance.
        eps: Added to the variance.
        synchronized: Take the statistics over the batches of all ranks: one small all-reduce in
            each forward and each backward pass. Otherwise every rank has its own, and the running
            statistics are averaged over the ranks where they are used.
    """

    kind = "batch_norm"

    def __init__(
        self,
        *,
        relu: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
        synchronized: bool = True,
    ) -> None:
        super().__init__()
        self.has_relu = relu
        self.momentum = momentum
        self.eps = eps
        self.needs_collective = synchronized

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

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        flat = x.reshape(1, math.prod(x.shape[:-1]), x.shape[-1])
        mean, variance, count = self._statistics(flat, train=train)
        rstd = 1 / np.sqrt(variance + self.eps)
        weight, bias = self._to_host("weight"), self._to_host("bias")
        y = self.workspace.get("y", x.shape, x.dtype)
        scale = self._to_device(weight * rstd, "scale", x)
        shift = self._to_device(bias - mean * weight * rstd, "shift", x)
        self.ops.segment_affine(flat, scale, shift, None, y, relu=self.has_relu)
        center = self._to_device(mean, "center", x)

        def backward(dy: Array) -> Array | None:
            dy = dy.reshape(flat.shape)
            sum_dy = self.workspace.get("sum_dy", center.shape, center.dtype)
            sum_dyx = self.workspace.get("sum_dyx", center.shape, center.dtype)
            self.ops.segment_dots(dy, flat, y if self.has_relu else None, center, sum_dy, sum_dyx)
            sums = np.concatenate(
                [self.ops.to_host(part)[0].astype(np.float64) for part in (sum_dy, sum_dyx)]
            )
            self.gradient("bias")[...] = sum_dy[0]
            self.gradient("weight")[...] = self._to_device(sums[len(rstd) :] * rstd, "dw", x)[0]
            if not self.needs_input_gradient:
                return None
            total_dy, total_dyx = np.split(self._reduce(sums), 2)
            a = weight * rstd
            b = -a * rstd**2 * total_dyx / count
            c = -a * total_dy / count - b * mean
            factors = [self._to_device(v, n, x) for v, n in ((a, "a"), (b, "b"), (c, "c"))]
            self.ops.segment_dx(dy, flat, factors[0], factors[1], factors[2], dy)
            return dy.reshape(x.shape)

        return y, backward

    def _statistics(self, x: Array, *, train: bool) -> tuple[Vector, Vector, float]:
        """Mean (c), variance (c) and number of elements of the normalization, in float64."""
        if not train:
            return self._to_host("running_mean"), self._to_host("running_var"), 1.0
        mean, variance, count = self._moments(x)
        if not self.runtime.recomputing:
            self._update_running(mean, variance * count / max(count - 1, 1))
        return mean, variance, count

    def _moments(self, x: Array) -> tuple[Vector, Vector, float]:
        """Mean (c), variance (c) and number of elements of the batch, over all ranks."""
        mean = self.workspace.get("mean", (1, x.shape[-1]), accumulator(x.dtype))
        m2 = self.workspace.get("m2", (1, x.shape[-1]), accumulator(x.dtype))
        self.ops.segment_moments(x, mean, m2)
        count, own = float(x.shape[1]), self.ops.to_host(mean)[0].astype(np.float64)
        sums = np.concatenate(([count], count * own, self.ops.to_host(m2)[0] + count * own**2))
        total, first, second = np.split(self._reduce(sums), (1, 1 + len(own)))
        n = max(float(total[0]), 1.0)
        return first / n, np.maximum(second / n - (first / n) ** 2, 0), n

    def _reduce(self, values: Vector) -> Vector:
        """Sum values over the ranks, in place."""
        if self.needs_collective and self.runtime.reduce is not None:
            self.runtime.reduce(values)
        return values

    def _update_running(self, mean: Vector, variance: Vector) -> None:
        for name, newest in (("running_mean", mean), ("running_var", variance)):
            running = self.value(name)
            running *= running.dtype.type(1 - self.momentum)
            running += self.ops.to_device((self.momentum * newest).astype(running.dtype))

    def _to_host(self, name: str) -> Vector:
        return np.asarray(self.ops.to_host(self.value(name)).astype(np.float64))

    def _to_device(self, values: Vector, name: str, like: Array) -> Array:
        held = self.workspace.get(name, (1, len(values)), accumulator(like.dtype))
        held[0] = self.ops.to_device(values.astype(held.dtype))
        return held
