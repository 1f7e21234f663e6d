"""Makes solutions of Burgers' equation on a circle, as HDF5.

    python scripts/examples/make_burgers.py data/burgers --samples 1024 --test-samples 128

u_t + u u_x = v u_xx, v = 0.02: from the state at time 0 to the state at time 1 (Li et al., 2021).
A Fourier method with an integrating factor and Runge-Kutta steps. Writes train.h5 and test.h5 with
"start" (samples, points, 2), the smooth random states and their positions, and "end" (samples,
points, 1), both float32.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import h5py
import numpy as np

VISCOSITY, FINE, STEPS = 0.02, 256, 400


def solve(start: Any) -> Any:
    """The states (n, FINE) at time 1 of states at time 0."""
    waves = np.fft.rfftfreq(FINE, 1 / FINE) * 2 * np.pi
    kept, dt = waves < 2 * np.pi * FINE / 3, 1.0 / STEPS
    half = np.exp(-VISCOSITY * waves**2 * dt / 2)
    full = half * half

    def slope(spectrum: Any) -> Any:
        u = np.fft.irfft(spectrum, FINE)
        return -0.5j * waves * np.fft.rfft(u * u) * kept

    state = np.fft.rfft(start)
    for _ in range(STEPS):
        a = slope(state)
        b = slope(half * (state + dt / 2 * a))
        c = slope(half * state + dt / 2 * b)
        d = slope(full * state + dt * half * c)
        state = full * state + dt / 6 * (full * a + 2 * half * (b + c) + d)
    return np.fft.irfft(state, FINE)


def make(count: int, points: int, seed: int) -> tuple[Any, Any]:
    """States with their positions (count, points, 2), and the states at time 1."""
    rng = np.random.default_rng(seed)
    waves = np.arange(1, 7)
    amplitudes = rng.standard_normal((2, count, len(waves))) / waves
    position = np.arange(FINE) / FINE
    angles = 2 * np.pi * waves[:, None] * position
    start = 0.3 * (amplitudes[0] @ np.sin(angles) + amplitudes[1] @ np.cos(angles))
    end, every = solve(start), FINE // points
    x = np.stack((start[:, ::every], np.broadcast_to(position[::every], (count, points))), axis=2)
    return x.astype(np.float32), end[:, ::every, None].astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--test-samples", type=int, default=128)
    parser.add_argument("--points", type=int, default=64, help="of 256")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    parts = {"train": args.samples, "test": args.test_samples}
    for seed, (name, count) in enumerate(parts.items()):
        with h5py.File(args.folder / f"{name}.h5", "w") as file:
            file["start"], file["end"] = make(count, args.points, seed)


if __name__ == "__main__":
    main()
