"""Convolution in Fourier space."""

from __future__ import annotations

import math

from mpidl.backend import Array
from mpidl.nn.layer import Backward, Layer, Shape
from mpidl.nn.parameters import ParameterSpec


class SpectralConv(Layer):
    """The lowest `modes` Fourier modes of each axis are mixed by a complex matrix each, the others dropped (Li et al., 2021).

    x (n, *size, c) with one or two axes to (n, *size, channels). weight: real and imaginary parts, (2, *kept modes, c,
    channels),
    for the modes below `modes` and, on the first of two axes, those as far below zero.
    """

    kind = "spectral"

    def __init__(self, channels: int, modes: int) -> None:
        super().__init__()
        self.channels, self.modes = channels, modes

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) not in (2, 3):
            raise self._refuse(
                shape, "a spectral convolution needs (size, channels) or (height, width, channels)"
            )
        if 2 * self.modes > min(shape[:-1]):
            raise self._refuse(
                shape, f"{self.modes} modes need extents of at least {2 * self.modes}"
            )
        return (*shape[:-1], self.channels)

    def _kept(self, axes: int) -> tuple[int, ...]:
        return (self.modes,) if axes == 1 else (2 * self.modes, self.modes)

    def declare(self, shape: Shape) -> list[ParameterSpec]:
        kept = self._kept(len(shape) - 1)
        return [
            ParameterSpec(
                "weight",
                (2, *kept, shape[-1], self.channels),
                "lecun_normal",
                fan_in=2 * shape[-1],
                exact=True,
            )
        ]

    def flops(self, shape: Shape) -> float:
        size, kept = shape[:-1], math.prod(self._kept(len(shape) - 1))
        fft = 2.5 * math.prod(size) * math.log2(math.prod(size)) * (shape[-1] + self.channels)
        return fft + 8.0 * kept * shape[-1] * self.channels

    def _low(self, spectrum: Array) -> Array:
        """The kept modes as (modes, n, c): matrices, one for each mode."""
        m, xp = self.modes, self.ops.xp
        if spectrum.ndim == 3:
            kept = spectrum[:, :m]
        else:
            kept = xp.concatenate((spectrum[:, :m, :m], spectrum[:, -m:, :m]), axis=1)
        return xp.ascontiguousarray(
            kept.reshape(kept.shape[0], -1, kept.shape[-1]).transpose(1, 0, 2)
        )

    def _place(self, low: Array, n: int, size: Shape) -> Array:
        """A spectrum with these modes, and zeros elsewhere."""
        m, xp = self.modes, self.ops.xp
        kept = low.transpose(1, 0, 2).reshape(n, *self._kept(len(size)), low.shape[-1])
        spectrum = xp.zeros((n, *size[:-1], size[-1] // 2 + 1, low.shape[-1]), low.dtype)
        if len(size) == 1:
            spectrum[:, :m] = kept
        else:
            spectrum[:, :m, :m], spectrum[:, -m:, :m] = kept[:, :m], kept[:, m:]
        return spectrum

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        n, size, xp = x.shape[0], x.shape[1:-1], self.ops.xp
        axes = tuple(range(1, 1 + len(size)))
        parts = self._value("weight")
        w = (parts[0] + 1j * parts[1]).reshape(-1, x.shape[-1], self.channels)
        exact = (
            self.parameters.dtype
        )  # Fourier transforms and modes stay exact where activations have 16 bits
        low = self._low(xp.fft.rfftn(x.astype(exact, copy=False), axes=axes))
        y = self.space.get("y", (n, *size, self.channels), x.dtype)
        y[...] = xp.fft.irfftn(self._place(xp.matmul(low, w), n, size), s=size, axes=axes)

        def backward(dy: Array) -> Array | None:
            # irfftn is linear: its transpose is rfftn over the number of points, with modes that stand for two counted twice
            points, twice = math.prod(size), self._twice(size)
            dlow = self._low(
                xp.fft.rfftn(dy.reshape(y.shape).astype(exact, copy=False), axes=axes)
            ) * (twice / points)
            gradient = xp.matmul(low.conj().transpose(0, 2, 1), dlow)
            out = self._gradient("weight")
            out[0], out[1] = (
                gradient.real.reshape(out[0].shape),
                gradient.imag.reshape(out[1].shape),
            )
            if not self.needs_input_gradient:
                return None
            back = xp.matmul(dlow, w.conj().transpose(0, 2, 1)) / twice
            dx = self.space.get("dx", x.shape, x.dtype)
            dx[...] = xp.fft.irfftn(self._place(back * points, n, size), s=size, axes=axes)
            return dx

        return y, backward

    def _twice(self, size: Shape) -> Array:
        """(modes, 1, 1): 2, but 1 where the last frequency is 0 (or the middle one), which has no mirror image."""
        xp, kept = self.ops.xp, self._kept(len(size))
        last = xp.arange(self.modes)
        single = (last == 0) | ((size[-1] % 2 == 0) & (last == size[-1] // 2))
        column = xp.where(single, 1.0, 2.0).astype(self.parameters.dtype)
        return xp.broadcast_to(column, kept).reshape(-1, 1, 1)
