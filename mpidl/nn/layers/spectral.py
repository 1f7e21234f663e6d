"""Spectral convolution."""

from __future__ import annotations

import math

from mpidl.backend import Array
from mpidl.nn.layer import Backward, Layer, Shape
from mpidl.nn.parameters import ParameterSpec


class SpectralConv(Layer):
    """Convolution in Fourier space (Li et al., 2021): x (n, *size, c) to (n, *size, channels).

    Multiplies each of the lowest Fourier modes of one or two axes with a complex matrix and drops
    the others. weight has real and imaginary parts, (2, *kept modes, c, channels). On the last axis
    modes 0 to modes - 1 are kept, on the first of two axes also those from -modes on.

    Args:
        channels: Number of output channels.
        modes: Number of modes kept per axis; at most half of its size.
    """

    kind = "spectral_conv"

    def __init__(self, channels: int, modes: int) -> None:
        super().__init__()
        self.channels = channels
        self.modes = modes

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) not in (2, 3):
            raise self.shape_error(
                shape, "a spectral convolution needs (size, channels) or (height, width, channels)"
            )
        if 2 * self.modes > min(shape[:-1]):
            raise self.shape_error(
                shape, f"{self.modes} modes need axes of at least {2 * self.modes} points"
            )
        return (*shape[:-1], self.channels)

    def _kept(self, axes: int) -> tuple[int, ...]:
        return (self.modes,) if axes == 1 else (2 * self.modes, self.modes)

    def declare(self, shape: Shape) -> list[ParameterSpec]:
        kept = self._kept(len(shape) - 1)
        weight = (2, *kept, shape[-1], self.channels)
        return [ParameterSpec("weight", weight, "lecun_normal", fan_in=2 * shape[-1], exact=True)]

    def flops(self, shape: Shape) -> float:
        size, kept = shape[:-1], math.prod(self._kept(len(shape) - 1))
        fft = 2.5 * math.prod(size) * math.log2(math.prod(size)) * (shape[-1] + self.channels)
        return fft + 8.0 * kept * shape[-1] * self.channels

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        xp = self.ops.xp
        n, size = x.shape[0], x.shape[1:-1]
        axes = tuple(range(1, 1 + len(size)))
        parts = self.value("weight")
        w = (parts[0] + 1j * parts[1]).reshape(-1, x.shape[-1], self.channels)
        # Fourier transforms keep full precision where activations have 16 bits
        dtype = self.parameters.dtype
        low = self._low(xp.fft.rfftn(x.astype(dtype, copy=False), axes=axes))
        y = self.workspace.get("y", (n, *size, self.channels), x.dtype)
        y[...] = xp.fft.irfftn(self._embed(xp.matmul(low, w), n, size), s=size, axes=axes)

        def backward(dy: Array) -> Array | None:
            # The transpose of irfftn is rfftn divided by the number of points, where modes that
            # represent their complex conjugate too count twice.
            points, twice = math.prod(size), self._multiplicity(size)
            spectrum = xp.fft.rfftn(dy.reshape(y.shape).astype(dtype, copy=False), axes=axes)
            dlow = self._low(spectrum) * (twice / points)
            gradient = xp.matmul(low.conj().transpose(0, 2, 1), dlow)
            dweight = self.gradient("weight")
            dweight[0] = gradient.real.reshape(dweight[0].shape)
            dweight[1] = gradient.imag.reshape(dweight[1].shape)
            if not self.needs_input_gradient:
                return None
            back = xp.matmul(dlow, w.conj().transpose(0, 2, 1)) / twice
            dx = self.workspace.get("dx", x.shape, x.dtype)
            dx[...] = xp.fft.irfftn(self._embed(back * points, n, size), s=size, axes=axes)
            return dx

        return y, backward

    def _low(self, spectrum: Array) -> Array:
        """The kept modes of a spectrum, one matrix per mode: (modes, n, c)."""
        m, xp = self.modes, self.ops.xp
        if spectrum.ndim == 3:
            kept = spectrum[:, :m]
        else:
            kept = xp.concatenate((spectrum[:, :m, :m], spectrum[:, -m:, :m]), axis=1)
        kept = kept.reshape(kept.shape[0], -1, kept.shape[-1])
        low: Array = xp.ascontiguousarray(kept.transpose(1, 0, 2))
        return low

    def _embed(self, low: Array, n: int, size: Shape) -> Array:
        """The spectrum (n, ..., c) that has these modes and zeros elsewhere."""
        m, xp = self.modes, self.ops.xp
        kept = low.transpose(1, 0, 2).reshape(n, *self._kept(len(size)), low.shape[-1])
        spectrum: Array = xp.zeros((n, *size[:-1], size[-1] // 2 + 1, low.shape[-1]), low.dtype)
        if len(size) == 1:
            spectrum[:, :m] = kept
        else:
            spectrum[:, :m, :m] = kept[:, :m]
            spectrum[:, -m:, :m] = kept[:, m:]
        return spectrum

    def _multiplicity(self, size: Shape) -> Array:
        """Number of modes of the full spectrum that each kept mode represents, (modes, 1, 1).

        Two, but one where the last frequency is 0 or the Nyquist frequency, which is its own
        conjugate.
        """
        xp, kept = self.ops.xp, self._kept(len(size))
        last = xp.arange(self.modes)
        single = (last == 0) | ((size[-1] % 2 == 0) & (last == size[-1] // 2))
        column = xp.where(single, 1.0, 2.0).astype(self.parameters.dtype)
        full: Array = xp.broadcast_to(column, kept)
        return full.reshape(-1, 1, 1)
