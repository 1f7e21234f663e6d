"""Whole training steps beside PyTorch DDP (gloo): mpirun -n 2 python scripts/bench/train_step.py --model cnn --peer torch

The same batches, initial parameters and optimizer; rounds of both alternate in time; each round is as slow as its slowest
rank; medians over rounds. One thread a rank for both. A step is forward, backward, gradient exchange and update.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

import mpidl  # noqa: F401  (MPI before anything else)
from mpidl.backend import create_ops
from mpidl.comm.context import Context, init
from mpidl.models import layers_of
from mpidl.nn import Model, SoftmaxCrossEntropy
from mpidl.optim import SGD
from mpidl.sync import AllReduce, StepScalars

SHAPE, CLASSES = (28, 28, 1), 10
LR, MOMENTUM = 0.005, 0.9


def our_stepper(context: Context, name: str) -> tuple[Model, Callable[[Any, Any], float]]:
    """One training step of mpidl: takes (n, 28, 28, 1) and labels, returns the loss over all ranks."""
    ops = create_ops("auto", context.local_rank, context.threads)
    model = Model(layers_of(name, SHAPE, CLASSES, {}), SHAPE, ops)
    model.parameters.initialise(0)
    optimizer, loss = SGD(model.parameters, ops, momentum=MOMENTUM), SoftmaxCrossEntropy(ops)
    strategy = AllReduce(model.parameters, context)
    strategy.begin()

    def step(x: Any, y: Any) -> float:
        logits, backward = model.forward(ops.to_device(x), train=True)
        result = loss(logits, ops.to_device(y), len(x) * context.size)
        backward(result.gradient, strategy.ready)
        strategy.note(StepScalars(loss=result.total))
        sums = strategy.finish()
        optimizer.step(LR)
        return sums.loss / (len(x) * context.size)

    return model, step


def torch_stepper(context: Context, model: Model) -> Callable[[Any, Any], float]:
    """One training step of PyTorch DDP with gloo, from the same initial parameters."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from torch_models import twin

    torch.set_num_threads(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = context.broadcast(probe.getsockname()[1])
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=context.rank, world_size=context.size)
    network = DistributedDataParallel(twin(model))
    optimizer = torch.optim.SGD(network.parameters(), LR, MOMENTUM)
    criterion = torch.nn.CrossEntropyLoss()

    def step(x: Any, y: Any) -> float:
        inputs = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
        optimizer.zero_grad()
        loss = criterion(network(inputs), torch.from_numpy(y))
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def roofline_ms(model: Model, batch: int) -> float:
    """The step's multiply-adds at the speed of this machine's own large sgemm, measured now."""
    import numpy as np

    a = np.ones((1024, 1024), np.float32)
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - begin)
    flops, shape, first = 0.0, model.input_shape, True
    for layer in model.layers:
        out = layer.output_shape(shape)
        for spec in layer.declare(shape):
            if spec.name == "weight":
                places = out[0] * out[1] if len(out) == 3 else 1
                flops += 2.0 * spec.size * places * batch * (2 if first else 3)
                first = False
        shape = out
    return flops * statistics.median(times) / (2 * 1024**3) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["mlp", "cnn"], default="cnn")
    parser.add_argument("--batch", type=int, default=64, help="samples a rank")
    parser.add_argument("--peer", choices=["torch"], default="torch")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=5, help="steps of each contender in a round")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    import numpy as np

    context = init()
    rng, classes = np.random.default_rng(context.rank), np.random.default_rng(99).standard_normal((CLASSES, *SHAPE))
    batches = []
    for _ in range(8):  # something to learn: a pattern for each class, under noise
        y = rng.integers(0, CLASSES, args.batch)
        batches.append(((0.2 * classes[y] + rng.standard_normal((args.batch, *SHAPE))).astype(np.float32), y))
    model, ours = our_stepper(context, args.model)
    contenders = {"ours": ours, "peer": torch_stepper(context, model)}
    gaps = []
    for number in range(50):  # also the warm-up: equal losses over 50 steps
        x, y = batches[number % 8]
        losses = [step(x, y) for step in contenders.values()]
        peer = context.comm.allreduce(losses[1]) / context.size
        gaps.append(abs(losses[0] - peer) / abs(peer))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(args.rounds):
        for name, step in contenders.items():
            context.barrier()
            begin = time.perf_counter()
            for number in range(args.steps):
                step(*batches[number % 8])
            elapsed = (time.perf_counter() - begin) / args.steps * 1e3
            times[name].append(max(context.gather(elapsed)))
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = [peer / own for own, peer in zip(times["ours"], times["peer"], strict=True)]
    result = {
        "model": args.model, "ranks": context.size, "batch": args.batch, "backend": model.ops.describe(),
        "ours_ms": medians["ours"], "peer_ms": medians["peer"], "ratio": statistics.median(ratios),
        "roofline_fraction": roofline_ms(model, args.batch) / medians["ours"], "loss_gap": max(gaps),
    }  # fmt: skip
    if context.is_root:
        print(
            json.dumps(result) if args.json else "\n".join(f"{key:>18}: {value}" for key, value in result.items()), flush=True
        )
    import torch.distributed as dist

    dist.destroy_process_group()


if __name__ == "__main__":
    main()
