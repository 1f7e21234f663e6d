"""Whole training steps compared with PyTorch DDP (gloo).

    mpirun -n 2 python scripts/bench/train_step.py --model cnn --peer torch

The same batches, initial parameters and optimizer; rounds of both alternate in time; each round is
as slow as its slowest rank; medians over rounds. One thread a rank for both. A step is forward,
backward, gradient exchange and update. Peak memory is that of a process which takes a few steps of
one of them alone, so that neither carries the other's libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import mpidl  # noqa: F401  (MPI before anything else)
from mpidl.backend import create_ops
from mpidl.comm.context import Context, init
from mpidl.models import build_layers
from mpidl.nn import CrossEntropy, Model
from mpidl.optim import SGD
from mpidl.sync import AllReduce
from mpidl.train.engine import StepBatch, TrainingStep

MOMENTUM = 0.9
CONTEXT, VOCABULARY = 128, 256
# input shape, classes, options, samples a rank, learning rate (low enough that rounding is not
# blown up within 50 steps)
MODELS: dict[str, tuple[tuple[int, ...], int, dict[str, Any], int, float]] = {
    "mlp": ((28, 28, 1), 10, {}, 64, 0.005),
    "cnn": ((28, 28, 1), 10, {}, 64, 0.005),
    "resnet18": ((32, 32, 3), 10, {"synchronized": False}, 8, 0.0002),
    "gpt": ((CONTEXT,), VOCABULARY, {"width": 256, "depth": 6, "heads": 8}, 8, 0.005),
}


def build(name: str, context: Context) -> Model:
    shape, classes, options, _, _ = MODELS[name]
    model = Model(
        build_layers(name, shape, classes, options),
        shape,
        create_ops("auto", context.local_rank, context.threads),
    )
    model.parameters.initialize(0)
    return model


Step = Callable[[Any, Any], float]


def our_stepper(context: Context, model: Model, lr: float) -> Step:
    """One training step of mpidl: takes inputs and labels, returns the loss over all ranks."""
    ops = model.ops
    strategy = AllReduce(model.parameters, context)
    optimizer = SGD(model.parameters, ops, momentum=MOMENTUM)
    training = TrainingStep(model, CrossEntropy(ops), strategy, optimizer, context)
    strategy.start()

    def step(x: Any, y: Any) -> float:
        batch = StepBatch.whole(ops.to_device(x), ops.to_device(y), context.size)
        sums = training.run(iter((batch,)), lr)
        return sums.loss / sums.count

    return step


def torch_stepper(context: Context, model: Model, lr: float) -> Step:
    """One training step of PyTorch DDP with gloo, from the same initial parameters."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from torch_models import twin

    torch.set_num_threads(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = context.bcast_object(probe.getsockname()[1], int)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=context.rank, world_size=context.size
    )
    network = DistributedDataParallel(twin(model))
    optimizer = torch.optim.SGD(network.parameters(), lr, MOMENTUM)
    criterion = torch.nn.CrossEntropyLoss()

    def step(x: Any, y: Any) -> float:
        inputs = torch.from_numpy(x.transpose(0, 3, 1, 2).copy() if x.ndim == 4 else x)
        optimizer.zero_grad()
        logits = network(inputs)
        loss = criterion(logits.reshape(-1, logits.shape[-1]), torch.from_numpy(y).reshape(-1))
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def make_batches(name: str, batch: int, rank: int) -> list[tuple[Any, Any]]:
    """Something to learn: tokens for the gpt, else a pattern for each class, under noise."""
    import numpy as np

    shape, classes, *_ = MODELS[name]
    rng, patterns = np.random.default_rng(rank), np.random.default_rng(99)
    if name == "gpt":
        return [make_text(rng, patterns.permutation(VOCABULARY), batch) for _ in range(8)]
    kinds = patterns.standard_normal((classes, *shape))
    batches: list[tuple[Any, Any]] = []
    for _ in range(8):
        y = rng.integers(0, classes, batch)
        x = 0.2 * kinds[y] + rng.standard_normal((batch, *shape))
        batches.append((x.astype(np.float32), y))
    return batches


def make_text(rng: Any, successor: Any, batch: int) -> tuple[Any, Any]:
    """Tokens that mostly follow from the one before them, and the same one token later."""
    import numpy as np

    text = np.empty((batch, CONTEXT + 1), np.int64)
    text[:, 0] = rng.integers(0, VOCABULARY, batch)
    for index in range(CONTEXT):
        surprise = rng.integers(0, VOCABULARY, batch)
        follows = rng.random(batch) < 0.7
        text[:, index + 1] = np.where(follows, successor[text[:, index]], surprise)
    return text[:, :-1].copy(), text[:, 1:].copy()


def roofline_ms(model: Model, batch: int) -> float:
    """Milliseconds of the step's multiply-adds at the speed of this machine's sgemm, measured now.

    Multiply-adds are counted as direct convolutions and products need them.
    """
    import numpy as np

    a = np.ones((1024, 1024), np.float32)
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - begin)
    flops, shape, first = 0.0, model.input_shape, True
    for layer in model.layers:
        own = layer.flops(shape)
        # the first layer needs no gradient of its input
        flops += own * batch * (2 if first else 3)
        first = first and not own
        shape = layer.output_shape(shape)
    return flops * statistics.median(times) / (2 * 1024**3) * 1e3


def peak_mib(name: str, contender: str, batch: int) -> float:
    """Peak resident memory of a process that takes three steps of one contender, alone."""
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("OMPI_COMM", "PMIX", "PRTE_LAUNCHED"))
    }
    command = [
        sys.executable,
        __file__,
        "--model",
        name,
        "--batch",
        str(batch),
        "--alone",
        contender,
    ]
    return float(
        subprocess.run(
            command, env=clean, check=True, capture_output=True, text=True
        ).stdout.split()[-1]
    )


def alone(name: str, contender: str, batch: int) -> None:
    begin = time.perf_counter()
    context = init()
    model = build(name, context)
    make, lr = our_stepper if contender == "ours" else torch_stepper, MODELS[name][4]
    step = make(context, model, lr)
    batches = make_batches(name, batch, 0)
    for number in range(3):
        step(*batches[number])
        if number == 0:
            print(f"first step after {time.perf_counter() - begin:.2f} s", file=sys.stderr)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=list(MODELS), default="cnn")
    parser.add_argument(
        "--batch", type=int, default=0, help="samples a rank (0: 64, and 8 for resnet18 and gpt)"
    )
    parser.add_argument("--peer", choices=["torch"], default="torch")
    parser.add_argument(
        "--seconds", type=float, default=45, help="how long to measure, at least five rounds"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--alone", choices=["ours", "peer"], help=argparse.SUPPRESS)
    return parser.parse_args()


def measure_gap(contenders: dict[str, Step], batches: list[Any], context: Context) -> float:
    """The largest relative difference of the losses over 50 steps, which are also the warm-up."""
    gaps = []
    for number in range(50):
        losses = [step(*batches[number % 8]) for step in contenders.values()]
        theirs = context.comm.allreduce(losses[1]) / context.size
        gaps.append(abs(losses[0] - theirs) / abs(theirs))
    return max(gaps)


def measure_times(
    contenders: dict[str, Step], batches: list[Any], context: Context, seconds: float, steps: int
) -> dict[str, list[float]]:
    """Milliseconds of a step on the slowest rank, in rounds of `steps` steps of each contender."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    started = time.perf_counter()
    while (
        len(times["ours"]) < 5
        or context.bcast_object(time.perf_counter() - started, float) < seconds
    ):
        for name, step in contenders.items():
            context.barrier()
            begin = time.perf_counter()
            for number in range(steps):
                step(*batches[number % 8])
            taken = (time.perf_counter() - begin) / steps * 1e3
            times[name].append(max(context.allgather_object(taken, float)))
    return times


def main() -> None:
    args = parse()
    batch = args.batch or MODELS[args.model][3]
    if args.alone:
        alone(args.model, args.alone, batch)
        return
    context = init()
    memory = {
        contender: max(context.allgather_object(peak_mib(args.model, contender, batch), float))
        for contender in ("ours", "peer")
    }
    batches = make_batches(args.model, batch, context.rank)
    model, lr = build(args.model, context), MODELS[args.model][4]
    peer = torch_stepper(context, model, lr)  # before ours, which changes the parameters
    contenders = {"ours": our_stepper(context, model, lr), "peer": peer}
    gap = measure_gap(contenders, batches, context)
    steps = 5 if args.model in ("mlp", "cnn") else 1
    times = measure_times(contenders, batches, context, args.seconds, steps)
    ratios = [theirs / own for own, theirs in zip(times["ours"], times["peer"], strict=True)]
    ours = statistics.median(times["ours"])
    result = {
        "model": args.model,
        "ranks": context.size,
        "batch": batch,
        "backend": model.ops.describe(),
        "ours_ms": ours,
        "peer_ms": statistics.median(times["peer"]),
        "ratio": statistics.median(ratios),
        "rounds": len(ratios),
        "roofline_fraction": roofline_ms(model, batch) / ours,
        "peak_mib": memory["ours"],
        "peer_peak_mib": memory["peer"],
        "loss_gap": gap,
    }
    if context.is_root:
        lines = "\n".join(f"{key:>18}: {value}" for key, value in result.items())
        print(json.dumps(result) if args.json else lines, flush=True)
    import torch.distributed as dist

    dist.destroy_process_group()


if __name__ == "__main__":
    main()
