"""Hogwild! on sparse logistic regression: mpirun -n 2 python scripts/bench/hogwild.py --json

Data of the shape of RCV1, the set of the paper (Recht et al., 2011): 47,236 features, about 76 of
them in a document, their frequencies by Zipf's law; labels from a hidden linear model with noise.
Every document is one update without a lock, of its own features only. The same rounds run on one
rank and on all, in turn. Prints the speed-up, the losses, and the paper's caveat: the share of
updates that is lost where all ranks change all elements (dense updates of one vector).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np

import mpidl  # noqa: F401  (MPI before anything else)
from mpidl.backend.numpy_ops import NumpyOps
from mpidl.comm import mpi
from mpidl.comm.context import Context, init
from mpidl.nn import FlatParameters, ParameterSpec
from mpidl.sync import Hogwild

FEATURES, EACH, BLOCK = 47_236, 76, 64


def make(samples: int, seed: int = 0) -> tuple[Any, Any, Any]:
    """Features (samples, EACH) int64, their values, and labels of -1 or 1."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, FEATURES + 1) ** 0.8
    places = np.sort(rng.choice(FEATURES, (samples, EACH), p=share / share.sum()), axis=1)
    values = rng.random((samples, EACH)).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    hidden = np.random.default_rng(1).standard_normal(FEATURES).astype(np.float32) * 4
    score = (hidden[places] * values).sum(axis=1) + rng.standard_normal(samples) * 0.5
    return places, values, np.where(score > 0, 1.0, -1.0).astype(np.float32)


def loss(weights: Any, data: tuple[Any, Any, Any]) -> float:
    places, values, labels = data
    return float(np.logaddexp(0, -labels * (weights[places] * values).sum(axis=1)).mean())


def run(
    context: Context, data: tuple[Any, Any, Any], epochs: int, rate: float
) -> tuple[float, float]:
    """Seconds, and the loss at the end."""
    parameters = FlatParameters([ParameterSpec("weights", (FEATURES,))], NumpyOps())
    strategy = Hogwild(parameters, context, Hogwild.Options(sparse=True))
    strategy.start()
    places, values, labels = data
    weights, blocks = parameters.values, len(labels) // BLOCK
    context.barrier()
    begun = time.monotonic()
    for epoch in range(epochs):
        strategy.begin_epoch(blocks)
        order = np.random.default_rng(epoch).permutation(blocks)
        step = rate * 0.8**epoch
        while (ticket := strategy.next_step()) is not None:
            for row in range(order[ticket] * BLOCK, (order[ticket] + 1) * BLOCK):
                where, what, label = places[row], values[row], labels[row]
                margin = label * float(weights[where] @ what)
                strategy.add(where, what * np.float32(step * label / (1 + np.exp(margin))))
    strategy.synchronize()
    seconds = time.monotonic() - begun
    return seconds, loss(weights, data)


def lost(context: Context, length: int, times: int) -> float:
    """The share of dense updates of one shared vector that others overwrite."""
    parameters = FlatParameters([ParameterSpec("weights", (length,))], NumpyOps())
    strategy = Hogwild(parameters, context)
    strategy.start()
    one = np.ones(parameters.length, np.float32)
    context.barrier()
    for _ in range(times):
        parameters.values += one
    strategy.synchronize()
    return 1 - float(parameters.values.mean()) / (times * context.size)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=20_032)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=2.0)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    args = parse()
    world = init()
    alone = world.comm.Split(0 if world.rank == 0 else mpi.load().UNDEFINED, world.rank)
    single = init(alone) if world.rank == 0 else None
    data = make(args.samples)
    times: dict[str, list[tuple[float, float]]] = {"one": [], "all": []}
    for _ in range(args.rounds):
        if single is not None:
            times["one"].append(run(single, data, args.epochs, args.rate))
        waiting = world.comm.Ibarrier()
        while not waiting.Test():  # without taking a core
            time.sleep(0.01)
        times["all"].append(run(world, data, args.epochs, args.rate))
    share = lost(world, 1 << 16, 400)
    if not world.is_root:
        return
    one, every = (statistics.median(seconds for seconds, _ in times[key]) for key in ("one", "all"))
    found = {
        "ranks": world.size,
        "seconds_one": one,
        "seconds_all": every,
        "speed_up": one / every,
        "loss_start": float(np.log(2)),
        "loss_one": statistics.median(end for _, end in times["one"]),
        "loss_all": statistics.median(end for _, end in times["all"]),
        "updates_per_second": args.samples * args.epochs / every,
        "dense_updates_lost": share,
    }
    print(
        json.dumps(found)
        if args.json
        else "\n".join(f"{key}: {value}" for key, value in found.items())
    )


if __name__ == "__main__":
    main()
