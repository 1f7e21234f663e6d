"""A Fourier neural operator learns Burgers' equation.

    mpirun -n 2 python scripts/examples/fno_burgers.py --epochs 40

u_t + u u_x = v u_xx on a circle, v = 0.02: from the state at time 0 to the state at time 1 (Li et
al., 2021). The data are computed here by a Fourier method with an integrating factor and
Runge-Kutta steps. Draws the error over the epochs, and three solutions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import mpidl  # noqa: F401  (MPI before anything else)
from mpidl.backend import create_ops
from mpidl.comm.context import Context, init
from mpidl.models import build_layers
from mpidl.nn import Model, MSELoss
from mpidl.optim import Adam, LearningRate
from mpidl.sync import AllReduce
from mpidl.train.engine import StepBatch, TrainingStep

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
    """Smooth random states with their positions (count, points, 2), and the states at time 1.

    Returns:
        Inputs (count, points, 2), targets (count, points, 1).
    """
    rng = np.random.default_rng(seed)
    waves = np.arange(1, 7)
    amplitudes = rng.standard_normal((2, count, len(waves))) / waves
    position = np.arange(FINE) / FINE
    angles = 2 * np.pi * waves[:, None] * position
    start = 0.3 * (amplitudes[0] @ np.sin(angles) + amplitudes[1] @ np.cos(angles))
    end, every = solve(start), FINE // points
    x = np.stack((start[:, ::every], np.broadcast_to(position[::every], (count, points))), axis=2)
    return x.astype(np.float32), end[:, ::every, None].astype(np.float32)


def relative_error(predicted: Any, y: Any) -> float:
    """Mean over the samples of |predicted - y| / |y|."""
    return float((np.linalg.norm(predicted - y, axis=1) / np.linalg.norm(y, axis=1)).mean())


def batches(x: Any, y: Any, own: int, context: Context, to_device: Any) -> Iterator[StepBatch]:
    """Shuffled batches of `own` samples a rank, epoch after epoch."""
    rng = np.random.default_rng(7)
    while True:
        order = rng.permutation(len(x))
        for start in range(0, len(x) // own * own, own):
            rows = order[start : start + own]
            yield StepBatch.whole(to_device(x[rows]), to_device(y[rows]), context.size)


def draw(path: Path, errors: list[float], x: Any, y: Any, predicted: Any) -> None:
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
    position = x[0, :, 1]
    for index, color in zip(range(3), ("tab:blue", "tab:orange", "tab:green"), strict=True):
        right.plot(
            position, x[index, :, 0], color=color, alpha=0.3, label="time 0" if not index else None
        )
        right.plot(position, y[index, :, 0], color=color, label="time 1" if not index else None)
        right.plot(
            position,
            predicted[index, :, 0],
            ":",
            color=color,
            linewidth=3,
            label="time 1, FNO" if not index else None,
        )
    right.set(xlabel="x", ylabel="u")
    right.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def train(model: Model, data: Any, test: Any, context: Context, args: Any) -> list[float]:
    """The relative error of held-out solutions after each epoch."""
    ops, own = model.ops, args.batch // context.size
    strategy = AllReduce(model.parameters, context)
    optimizer = Adam(model.parameters, ops)
    step = TrainingStep(model, MSELoss(ops), strategy, optimizer, context)
    strategy.start()
    steps = len(data[0]) // own
    rate = LearningRate(3e-3, steps * args.epochs, "cosine", warmup_steps=steps)
    feed = batches(*data, own, context, ops.to_device)
    errors: list[float] = []
    for epoch in range(args.epochs):
        for number in range(epoch * steps, (epoch + 1) * steps):
            step.run(feed, rate.at(number), step=number)
        errors.append(relative_error(predict(model, test[0]), test[1]))
        if context.is_root and not args.json:
            print(f"epoch {epoch + 1}: relative error {errors[-1]:.4f}", flush=True)
    return errors


def predict(model: Model, x: Any) -> Any:
    return np.array(model.ops.to_host(model.forward(model.ops.to_device(x))[0]))


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
    data = make(args.samples // context.size, args.points, seed=context.rank)
    x, y = make(64, args.points, seed=10_000)
    layers = build_layers("fno", x.shape[1:], 1, {"width": 32, "modes": 12, "depth": 4})
    ops = create_ops("auto", context.local_rank, context.threads)
    model = Model(layers, x.shape[1:], ops)
    model.parameters.initialize(0)
    errors = train(model, data, (x, y), context, args)
    if context.is_root:
        draw(args.plot, errors, x, y, predict(model, x))
        found = {
            "relative_error": errors[-1],
            "error_of_no_change": relative_error(x[..., :1], y),
            "ranks": context.size,
            "plot": str(args.plot),
        }
        print(json.dumps(found) if args.json else found)


if __name__ == "__main__":
    main()
