"""A Fourier neural operator learns Burgers' equation: mpirun -n 2 python scripts/examples/fno_burgers.py --epochs 40

u_t + u u_x = v u_xx on a circle, v = 0.02: from the state at time 0 to the state at time 1 (Li et al., 2021). The data are made
here by a Fourier method with an integrating factor and Runge-Kutta steps. Draws the error over the epochs, and three solutions.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import mpidl  # noqa: F401  (MPI before anything else)
from mpidl.backend import create_ops
from mpidl.comm.context import init
from mpidl.models import build_layers
from mpidl.nn import Model, MSELoss
from mpidl.optim import Adam, LearningRate
from mpidl.sync import AllReduce, StepScalars

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
    """Smooth random states with their places, (count, points, 2), and the states at time 1, (count, points, 1)."""
    rng = np.random.default_rng(seed)
    waves = np.arange(1, 7)
    amplitudes = rng.standard_normal((2, count, len(waves))) / waves
    place = np.arange(FINE) / FINE
    angles = 2 * np.pi * waves[:, None] * place
    start = 0.3 * (amplitudes[0] @ np.sin(angles) + amplitudes[1] @ np.cos(angles))
    end, every = solve(start), FINE // points
    x = np.stack((start[:, ::every], np.broadcast_to(place[::every], (count, points))), axis=2)
    return x.astype(np.float32), end[:, ::every, None].astype(np.float32)


def relative_error(model: Model, x: Any, y: Any) -> tuple[float, Any]:
    guess = np.array(model.ops.to_host(model.forward(model.ops.to_device(x))[0]))
    return float((np.linalg.norm(guess - y, axis=1) / np.linalg.norm(y, axis=1)).mean()), guess


def draw(path: Path, errors: list[float], x: Any, y: Any, guess: Any) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.semilogy(range(1, len(errors) + 1), errors)
    left.set(
        xlabel="epoch",
        ylabel="relative error of held-out solutions",
        title="FNO on Burgers' equation",
    )
    place = x[0, :, 1]
    for index, color in zip(range(3), ("tab:blue", "tab:orange", "tab:green"), strict=True):
        right.plot(
            place, x[index, :, 0], color=color, alpha=0.3, label="time 0" if not index else None
        )
        right.plot(place, y[index, :, 0], color=color, label="time 1" if not index else None)
        right.plot(
            place,
            guess[index, :, 0],
            ":",
            color=color,
            linewidth=3,
            label="time 1, FNO" if not index else None,
        )
    right.set(xlabel="x", ylabel="u")
    right.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--samples", type=int, default=512, help="over all ranks")
    parser.add_argument("--points", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16, help="over all ranks")
    parser.add_argument("--plot", type=Path, default=Path("runs/fno-burgers.png"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    context = init()
    own = args.batch // context.size
    x, y = make(args.samples // context.size, args.points, seed=context.rank)
    test_x, test_y = make(64, args.points, seed=10_000)
    ops = create_ops("auto", context.local_rank, context.threads)
    model = Model(
        build_layers("fno", x.shape[1:], 1, {"width": 32, "modes": 12, "depth": 4}),
        x.shape[1:],
        ops,
    )
    model.parameters.initialize(0)
    loss, optimizer, strategy = (
        MSELoss(ops),
        Adam(model.parameters, ops),
        AllReduce(model.parameters, context),
    )
    strategy.start()
    steps, rng, errors = len(x) // own, np.random.default_rng(7), []
    rate = LearningRate(3e-3, steps * args.epochs, "cosine", warmup_steps=steps)
    for epoch in range(args.epochs):
        order = rng.permutation(len(x))
        for step in range(steps):
            rows = order[step * own : (step + 1) * own]
            output, backward = model.forward(ops.to_device(x[rows]), train=True)
            result = loss(output, ops.to_device(y[rows]), own * context.size)
            backward(result.gradient, strategy.on_gradients_ready)
            lr = rate.at(epoch * steps + step)
            strategy.step(StepScalars(loss=result.total), partial(optimizer.step, lr))
        error, guess = relative_error(model, test_x, test_y)
        errors.append(error)
        if context.is_root and not args.json:
            print(f"epoch {epoch + 1}: relative error {error:.4f}", flush=True)
    if context.is_root:
        draw(args.plot, errors, test_x, test_y, guess)
        unchanged = float(
            (
                np.linalg.norm(test_x[..., :1] - test_y, axis=1) / np.linalg.norm(test_y, axis=1)
            ).mean()
        )
        found = {
            "relative_error": errors[-1],
            "error_of_no_change": unchanged,
            "ranks": context.size,
            "plot": str(args.plot),
        }
        print(json.dumps(found) if args.json else found)


if __name__ == "__main__":
    main()
