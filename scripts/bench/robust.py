"""Training with a wrong rank: mpirun -n 4 python scripts/bench/robust.py

The sample CNN on Fashion-MNIST, --steps steps of 256 samples on 4 ranks. Rank 1 does something else
with its gradients: nothing ("clean"), turns their sign, or sends them 100 times too large. Printed:
accuracy on the test images for the mean of allreduce and for each aggregate of the strategy robust,
and the time of a step beside that of allreduce.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from mpidl.backend import create_ops
from mpidl.comm.context import init
from mpidl.data.hdf5 import open_file
from mpidl.models import build_layers
from mpidl.nn import CrossEntropy, Model
from mpidl.optim import SGD
from mpidl.sync import AllReduce, Robust, StepScalars
from mpidl.sync.synchronous.robust.aggregators import AGGREGATORS
from mpidl.train.engine import StepBatch, TrainingStep

ATTACKS = {"clean": 1.0, "flipped": -1.0, "x100": 100.0}
BATCH = 256


def attacked(kind: type[Any], factor: float) -> type[Any]:
    """A strategy of which rank 1 multiplies its gradients."""

    class Attacked(kind):  # type: ignore[misc]
        def step(self, scalars: StepScalars, update: Any) -> StepScalars:
            if self.group.rank == 1 and factor != 1:
                self.parameters.gradients *= factor
            found: StepScalars = super().step(scalars, update)
            return found

    return Attacked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--data", type=Path, default=Path("data/fashion-mnist"))
    args = parser.parse_args()
    context = init()
    train, test = (read(args.data / part) for part in ("train", "test"))
    for aggregate in ("allreduce", *AGGREGATORS):
        for attack, factor in ATTACKS.items():
            kind = attacked(AllReduce if aggregate == "allreduce" else Robust, factor)
            own = "off" if aggregate == "allreduce" else aggregate
            options = (
                AllReduce.Options(overlap="off")
                if own == "off"
                else Robust.Options(aggregate=own, quarantine=20)
            )
            right, seconds, report = run(context, kind, options, train, test, args.steps)
            if context.is_root:
                print(
                    f"{aggregate:16} {attack:8} {100 * right:6.2f} %  {1e3 * seconds:6.1f} ms a "
                    f"step  {report}",
                    flush=True,
                )


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    images, labels = [], []
    for path in sorted(folder.glob("*.h5")):
        with open_file(path) as file:
            images.append(file["image"][...])
            labels.append(file["label"][...])
    image = np.concatenate(images).astype(np.float32)[..., None] / 255 - 0.3
    return image, np.concatenate(labels).astype(np.int64)


def run(
    context: Any, kind: Any, options: Any, train: Any, test: Any, steps: int
) -> tuple[float, float, dict[str, Any]]:
    """Accuracy, seconds of a step, and whom the strategy has left out."""
    layers = build_layers("cnn", (28, 28, 1), 10, {})
    model = Model(layers, (28, 28, 1), create_ops("numpy", threads=1))
    model.parameters.initialize(0)
    strategy = kind(model.parameters, context, options)
    strategy.start()
    optimizer = SGD(strategy.shard, model.ops)
    training = TrainingStep(model, CrossEntropy(model.ops), strategy, optimizer, context)
    order = np.random.default_rng(0).permutation(len(train[0]))
    times = []
    for step in range(steps):
        low = step * BATCH % (len(order) - BATCH)
        mine = order[low : low + BATCH][context.rank :: context.size]
        batch = StepBatch.whole(train[0][mine], train[1][mine], context.size)
        start = time.perf_counter()
        try:
            training.run(iter([batch]), 0.05, step=step)
        except Exception as error:  # it diverges: as good as guessing
            return 0.1, 0.0, {"error": str(error)[:60]}
        times.append(time.perf_counter() - start)
    right = 0
    for low in range(context.rank * 500, len(test[0]), context.size * 500):
        outputs = model.forward(test[0][low : low + 500], train=False)[0]
        right += int((outputs.argmax(axis=1) == test[1][low : low + 500]).sum())
    found = {k: v for k, v in strategy.report().items() if k.endswith(("steps", "ranks"))}
    return context.comm.allreduce(right) / len(test[0]), float(np.median(times)), found


if __name__ == "__main__":
    main()
