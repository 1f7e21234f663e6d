"""What augmentation takes beside loading: python scripts/bench/augment.py

Batches of --batch from data in memory, made into normalized inputs and targets of a model, one
thread; contenders alternate in one run, medians over rounds of one epoch:
  plain         no augmentation
  crop+flip     the usual two
  +cutout       and a square left out
  torchvision   the same crop and flip on uint8 tensors of each batch, one draw for the whole batch
                (its transforms draw no more), then scaled; where it is installed
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from mpidl.augment import AugmentConfig, Pipeline, Samples
from mpidl.backend.numpy_ops import NumpyOps
from mpidl.data import Batch, LaneSampler, Loader, Reader
from mpidl.options import Place
from mpidl.task import TASKS, FieldSpec, InputSpec
from mpidl.task.spec import TargetSpec
from mpidl.train.augmented import AugmentedInputs
from mpidl.train.inputs import Inputs
from scripts.bench.loader import make

MEAN, STD = 100.0, 60.0
USUAL: dict[str, Any] = {"crop": {"padding": 4}, "flip": {}}
Stage = Callable[[Batch], object]


def stages(shape: tuple[int, ...]) -> dict[str, Stage]:
    """What each contender does with a batch."""
    model: Any = SimpleNamespace(
        ops=NumpyOps(1),
        parameters=SimpleNamespace(compute_dtype=np.float32),
        takes_ids=False,
        input_shape=(*shape, 1)[:3],
        output_shape=(10,),
    )
    fields = (FieldSpec("image", shape, (MEAN,), (STD,)),)
    target = TargetSpec((FieldSpec("label", ()),), 10)
    spec = InputSpec("classification", fields, target, "image")
    kind = TASKS["classification"]
    inputs = Inputs(kind(kind.Options(), spec), model)

    def plain(batch: Batch) -> object:
        return inputs.features(batch.arrays), inputs.targets(batch.arrays)

    def augmented(options: dict[str, Any]) -> Stage:
        chosen = AugmentConfig.read(options, Place()).entries
        spec = Samples(inputs.spec.shape, "image", "classes", (), 1 / STD, -MEAN / STD)
        made = AugmentedInputs(inputs, Pipeline(chosen, spec, model.ops), 0)
        return lambda batch: made.stage(batch, 0, batch.count)

    found = {
        "plain": plain,
        "crop+flip": augmented(USUAL),
        "+cutout": augmented(USUAL | {"cutout": {"size": 8}}),
    }
    peer = torchvision(shape)
    return found | ({"torchvision": peer} if peer is not None else {})


def torchvision(shape: tuple[int, ...]) -> Stage | None:
    try:
        import torch
        from torchvision.transforms import v2
    except ImportError:
        return None
    torch.set_num_threads(1)
    change = v2.Compose([v2.RandomCrop(shape[:2], padding=4), v2.RandomHorizontalFlip()])

    def run(batch: Batch) -> object:
        images = torch.from_numpy(batch.arrays["image"])
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        labels = torch.from_numpy(batch.arrays["label"]).to(torch.int64)
        return (change(images).to(torch.float32) - MEAN) / STD, labels

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--samples", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    for shape, samples in (((28, 28), args.samples), ((64, 64, 3), args.samples // 8)):
        with tempfile.TemporaryDirectory() as name:
            folder = make(Path(name) / "data", samples, shape)
            measure(folder, shape, args.batch, args.rounds)


def measure(folder: Path, shape: tuple[int, ...], batch: int, rounds: int) -> None:
    reader = Reader(folder / "set", verify=False)
    loader = Loader(reader, LaneSampler(len(reader), batch))
    contenders = stages(shape)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for epoch in range(rounds + 1):
        for name, stage in contenders.items():
            begin = time.perf_counter()
            for item in loader.epoch(epoch):
                stage(item)
            if epoch:
                times[name].append((time.perf_counter() - begin) / loader.steps * 1e6)
    print(f"{'x'.join(map(str, shape))} bytes, batch {batch}:")
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(times["plain"], values, strict=True))
        print(f"  {name:<12} {statistics.median(values):7.1f} us a batch, {ratio:5.2f} of the rate")
    loader.close()
    reader.close()


if __name__ == "__main__":
    main()
