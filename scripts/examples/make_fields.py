"""Makes trajectories of a flow: vorticity of a viscous fluid on a periodic square, as HDF5.

    python scripts/examples/make_fields.py data/vorticity --samples 240 --test-samples 32

w_t + u . grad w = v lap w, with u from w through the stream function, from random smooth states.
A Fourier method with two thirds of the modes, an integrating factor and Runge-Kutta steps. Writes
train.h5 and test.h5 with "vorticity" (samples, frames, size, size, 1), float32.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import h5py
import numpy as np

STEPS = 10  # of the method between two frames


class Flow:
    """The equation in Fourier space.

    Args:
        size: Points of each axis.
        viscosity: v, in units of the square of the length of an axis, 2 pi, and time.
        every: Time between two frames.
    """

    def __init__(self, size: int, viscosity: float, every: float) -> None:
        self.size = size
        self.dt = every / STEPS
        self.kx = np.fft.fftfreq(size, 1 / size)[:, None]
        self.ky = np.fft.rfftfreq(size, 1 / size)[None]
        self.square = self.kx**2 + self.ky**2
        self.inverse = np.where(self.square > 0, 1 / np.maximum(self.square, 1), 0)
        self.kept = (abs(self.kx) < size / 3) & (self.ky < size / 3)
        self.half = np.exp(-viscosity * self.square * self.dt / 2)

    def slope(self, w: Any) -> Any:
        """-u . grad w, of spectra (n, size, size // 2 + 1)."""
        stream = w * self.inverse
        parts = (1j * self.ky * stream, -1j * self.kx * stream, 1j * self.kx * w, 1j * self.ky * w)
        u, v, wx, wy = (np.fft.irfft2(part, (self.size, self.size)) for part in parts)
        return -np.fft.rfft2(u * wx + v * wy) * self.kept

    def advance(self, w: Any) -> Any:
        """The spectra one frame later."""
        half, full, dt = self.half, self.half**2, self.dt
        for _ in range(STEPS):
            a = self.slope(w)
            b = self.slope(half * (w + dt / 2 * a))
            c = self.slope(half * w + dt / 2 * b)
            d = self.slope(full * w + dt * half * c)
            w = full * w + dt / 6 * (full * a + 2 * half * (b + c) + d)
        return w

    def trajectories(self, count: int, frames: int, rng: np.random.Generator) -> Any:
        """(count, frames, size, size, 1) from states of unit variance."""
        noise = np.fft.rfft2(rng.standard_normal((count, self.size, self.size)))
        start = np.fft.irfft2(noise * self.inverse * (self.square < 40), (self.size, self.size))
        start /= start.std(axis=(1, 2), keepdims=True)
        w, found = np.fft.rfft2(start), []
        for _ in range(frames):
            found.append(np.fft.irfft2(w, (self.size, self.size)))
            w = self.advance(w)
        return np.stack(found, axis=1)[..., None].astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=240)
    parser.add_argument("--test-samples", type=int, default=32)
    parser.add_argument("--frames", type=int, default=11)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--viscosity", type=float, default=0.02)
    parser.add_argument("--every", type=float, default=0.25, help="time between two frames")
    args = parser.parse_args()
    flow = Flow(args.size, args.viscosity, args.every)
    args.folder.mkdir(parents=True, exist_ok=True)
    parts = {"train": args.samples, "test": args.test_samples}
    for seed, (name, count) in enumerate(parts.items()):
        with h5py.File(args.folder / f"{name}.h5", "w") as file:
            rng = np.random.default_rng(seed)
            file["vorticity"] = flow.trajectories(count, args.frames, rng)


if __name__ == "__main__":
    main()
