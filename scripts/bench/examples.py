"""The worked examples (docs/examples.md) beside the same models and budgets in PyTorch.

    python scripts/bench/examples.py text-gpt diabetes-mlp burgers --seeds 3

Each example is trained by `mpirun -n 2 mpidl train` from its TOML, and in PyTorch in one process
from the same initial parameters, with the same batches in the same order, the same optimizer,
learning rates and clipping. The figures are those of the example's task over its test data. With
several seeds: medians, and the spread of ours, which says what noise is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch_models import twin

import mpidl  # noqa: F401  (MPI before anything else)
from mpidl.comm.context import init
from mpidl.config import Config, load_config
from mpidl.data.sampler import contiguous_batches
from mpidl.task import Evaluation, Task
from mpidl.task.rollout import Rollout
from mpidl.train.assemble import Parts, assemble

ROOT = Path(__file__).parents[2]
# the figure of each example, and whether more is better
FIGURES = {
    "text-gpt": ("bits_per_byte", False),
    "diabetes-mlp": ("r2", True),
    "shapes-unet": ("mean_iou", True),
    "sunspots-lstm": ("r2", True),
    "burgers": ("relative_l2", False),
    "vorticity": ("relative_l2", False),
}


def ours(path: Path, settings: list[str], ranks: int) -> tuple[dict[str, Any], float]:
    """What `mpidl train` reaches, and the seconds of the whole command."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            word for text in [*settings, f"train.output={folder}/run"] for word in ("--set", text)
        ]
        command = ["mpirun", "-n", str(ranks), "mpidl", "train", str(path), *words, "--json"]
        begin = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found, time.perf_counter() - begin


def to_torch(x: Any) -> torch.Tensor:
    """Our inputs as PyTorch takes them: images (n, c, h, w)."""
    found = torch.from_numpy(np.array(x))
    return found.permute(0, 3, 1, 2).contiguous() if found.ndim == 4 else found


def from_torch(y: torch.Tensor) -> torch.Tensor:
    """Outputs with the channels last."""
    return y.permute(0, 2, 3, 1) if y.ndim == 4 else y


def outputs_of(module: torch.nn.Module, x: Any, task: Task, steps: int) -> torch.Tensor:
    """What the module makes of our inputs, with the channels last; of a rollout all frames."""
    if not isinstance(task, Rollout):
        return from_torch(module(to_torch(x)))
    given, frames = to_torch(x), []
    for _ in range(steps):
        frames.append(module(given))
        given = torch.cat([given[:, frames[-1].shape[1] :], frames[-1]], dim=1)
    return torch.stack([from_torch(frame) for frame in frames], dim=1)


def loss_of(name: str, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean over positions, ignored ones counting 0; relative errors over samples or frames."""
    if name == "relative_l2":
        axes = tuple(range(1 if targets.ndim < 5 else 2, targets.ndim))
        error = (outputs.reshape(targets.shape) - targets).square().sum(axes).sqrt()
        return (error / targets.square().sum(axes).sqrt()).mean()
    if targets.dtype == torch.int64:
        flat = outputs.reshape(-1, outputs.shape[-1])
        total = F.cross_entropy(flat, targets.reshape(-1), ignore_index=-1, reduction="sum")
        return total / len(flat)
    return F.mse_loss(outputs.reshape(targets.shape), targets)


def make_optimizer(config: Config, module: torch.nn.Module) -> torch.optim.Optimizer:
    options = config.optim.options
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optim.name]
    betas = (options.beta1, options.beta2)
    decay = options.weight_decay
    return kind(module.parameters(), betas=betas, eps=options.eps, weight_decay=decay)


def theirs(path: Path, settings: list[str]) -> tuple[Evaluation, float]:
    """What PyTorch reaches with the same batches, and the seconds of its training."""
    config = load_config(path, settings)
    parts = assemble(config, init(), [], lambda text: None)
    parts.strategy.initialize(config.train.seed)
    module = twin(parts.model)
    optimizer = make_optimizer(config, module)
    steps = parts.task.options.steps if isinstance(parts.task, Rollout) else 1
    begin, step = time.perf_counter(), 0
    for epoch in range(config.train.epochs):
        for batch in parts.feed.epoch(epoch):
            for group in optimizer.param_groups:
                group["lr"] = parts.rate.at(step)
            optimizer.zero_grad()
            for piece in batch.micro_batches:
                if piece is not None:
                    targets = torch.from_numpy(np.array(piece[1]))
                    share = len(targets) / batch.global_count
                    outputs = outputs_of(module, piece[0], parts.task, steps)
                    (share * loss_of(config.loss.name, outputs, targets)).backward()
            if config.optim.clip_norm:
                torch.nn.utils.clip_grad_norm_(module.parameters(), config.optim.clip_norm)
            optimizer.step()
            step += 1
            if step == config.train.max_steps:
                return evaluate(parts, module), time.perf_counter() - begin
    return evaluate(parts, module), time.perf_counter() - begin


def evaluate(parts: Parts, module: torch.nn.Module) -> Evaluation:
    """The task's own metrics of PyTorch's outputs."""
    task, inputs, reader = parts.task, parts.feed.inputs, parts.test
    assert reader is not None
    sums = np.zeros(task.sums)
    with torch.no_grad():
        for piece in contiguous_batches(len(reader), 0, 1, 64):
            arrays = reader.read([piece])
            x = inputs.features(arrays)
            ahead = task.ahead if isinstance(task, Rollout) else 1
            outputs = outputs_of(module, x, task, ahead).contiguous().numpy()
            result = parts.step.loss(outputs, inputs.targets(arrays), 1)
            task.add(sums, task.scored(outputs, result, arrays))
    return task.evaluation(sums)


def baseline(name: str, config: Config) -> str:
    """What a model without a network reaches, where there is such a thing."""
    from mpidl.data import Reader

    if name not in ("diabetes-mlp", "sunspots-lstm"):
        return ""
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler

    parts = []
    for folder in (config.data.folders[0], str(config.data.test)):
        reader = Reader(folder, context=init(), driver="posix")
        arrays = reader.read([(0, len(reader))])
        x = next(array for key, array in arrays.items() if key != "target")
        parts.append((x.reshape(len(x), -1).astype(float), arrays["target"].reshape(-1)))
    scaler = StandardScaler().fit(parts[0][0])
    ridge = RidgeCV(np.logspace(-2, 4, 25)).fit(scaler.transform(parts[0][0]), parts[0][1])
    return f"; ridge regression: {ridge.score(scaler.transform(parts[1][0]), parts[1][1]):.4f}"


def compare(name: str, settings: list[str], seeds: int, ranks: int) -> None:
    path = ROOT / "scripts" / "configs" / f"{name}.toml"
    figure, more = FIGURES[name]
    own, other, times = [], [], []
    for seed in range(seeds):
        chosen = [*settings, f"train.seed={seed}"]
        found, seconds = ours(path, chosen, ranks)
        peer, peer_seconds = theirs(path, chosen)
        own.append(float(found[figure]))
        other.append(float(peer.metrics[figure]))
        times.append((seconds, peer_seconds))
        print(f"  seed {seed}: mpidl {own[-1]:.4f}, PyTorch {other[-1]:.4f}", flush=True)
    a, b = statistics.median(own), statistics.median(other)
    noise = max(own) - min(own)
    worse = (b - a if more else a - b) / abs(b)
    verdict = "within noise" if abs(a - b) <= max(noise, 0.01 * abs(b)) else "beyond noise"
    print(
        f"{name} {figure}: mpidl {a:.4f} in {statistics.median(t[0] for t in times):.0f} s, "
        f"PyTorch {b:.4f} in {statistics.median(t[1] for t in times):.0f} s; mpidl is "
        f"{abs(worse):.2%} {'worse' if worse > 0 else 'better'}, spread over {seeds} seed(s) "
        f"{noise:.4f}: {verdict}{baseline(name, load_config(path, settings))}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=list(FIGURES), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch (default: as ranks)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads or args.ranks)
    for name in args.names:
        compare(name, args.set, args.seeds, args.ranks)


if __name__ == "__main__":
    main()
