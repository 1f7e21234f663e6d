"""`mpidl predict` beside the forward pass alone: mpirun -n 2 python scripts/bench/predict.py

Images of 28 x 28 bytes in a sharded data set, files in the page cache, one thread a rank. In each
round, one after the other:
  hot       forward passes over one and the same batch of normalized inputs, which stays in the
            cache of the processor; the samples are divided evenly among the ranks
  forward   as hot, over different batches in memory, as every data set has
  predict   reading, normalizing, forward, probabilities, and writing all of them into one HDF5 file
            (the folder --folder, by default a temporary one)
The slowest rank counts. Printed: medians, and the ratio of the rates. Also the resident memory of a
rank at the end, with --samples 10000000 for data of any size.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mpidl.comm.context import Context, init
from mpidl.config import build_config
from mpidl.data.formats.source import Source
from mpidl.data.writer import WriteOptions, write_dataset
from mpidl.inference.outputs import choose_outputs
from mpidl.inference.predict import Predictor
from mpidl.inference.samples import identify, open_samples
from mpidl.inference.sharded import Prediction, batch_size, layout_of, predict
from mpidl.train.signals import StopRequest
from mpidl.train.trainer import Trainer

DIFFERENT = 64  # batches that are larger together than the caches
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "hidden": [256, 256]},
    "cnn": {"name": "cnn", "channels": [32, 64], "hidden": [128]},
}


def make(folder: Path, samples: int, context: Context) -> None:
    """A data set of random images, and a run of one step of each model."""
    rng = np.random.default_rng(0)
    block = rng.integers(0, 256, (4096, 28, 28), dtype=np.uint8)

    def read(low: int, high: int) -> dict[str, Any]:
        return {"image": block[np.arange(low, high) % 4096], "label": np.arange(low, high) % 10}

    write_dataset(Source(samples, read), folder / "set", WriteOptions(4), context, lambda n: None)
    write_dataset(Source(512, read), folder / "few", WriteOptions(4), context, lambda n: None)
    for name, model in MODELS.items():
        tree = {
            "data": {"train": str(folder / "few")},
            "model": model,
            "train": {"output": str(folder / name), "max_steps": 1},
        }
        trainer = Trainer(build_config(tree, name), context, observers=[])
        trainer.prepare()
        trainer.run()
        trainer.close()


def measure(folder: Path, name: str, samples: int, rounds: int) -> dict[str, list[float]]:
    context = init()
    predictor = Predictor(folder / name, context)
    data = open_samples([folder / "set"], predictor.task, context)
    outputs = choose_outputs([], predictor)
    prediction = Prediction(predictor, outputs, None, context)
    layout = layout_of(prediction, data, identify([folder / "set"], {}))
    stop = StopRequest()
    batch = batch_size(predictor)
    starts = range(0, samples - batch + 1, batch)[:DIFFERENT]
    batches = [predictor.inputs.features(data.read(s, s + batch)).copy() for s in starts]
    own = [*range(context.rank * batch, samples, context.size * batch)]

    def forward(different: bool) -> None:
        for index, low in enumerate(own):
            x = batches[index % len(batches) if different else 0]
            predictor.model.forward(x[: min(batch, samples - low)])

    def whole() -> None:
        out = folder / f"{name}.h5"
        predict(prediction, data, out, layout, stop, restart=True, overwrite=True)

    contenders: dict[str, Callable[[], None]] = {
        "hot": lambda: forward(False),
        "forward": lambda: forward(True),
        "predict": whole,
    }
    times: dict[str, list[float]] = {key: [] for key in contenders}
    for round_ in range(rounds + 1):
        for key, run in contenders.items():
            context.barrier()
            begin = time.perf_counter()
            run()
            seconds = context.comm.allgather(time.perf_counter() - begin)
            if round_:
                times[key].append(max(seconds))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--folder", type=Path, help="for data and predictions")
    parser.add_argument("--make", type=Path, help="only make data and runs in this folder")
    args = parser.parse_args()
    context = init()
    if args.make:
        make(args.make, args.samples, context)
        return
    base = context.on_root(lambda: tempfile.mkdtemp(dir=args.folder), "making a folder")
    folder = Path(base)
    try:
        make(folder, args.samples, context)
        for name in args.models:
            times = measure(folder, name, args.samples, args.rounds)
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            most = max(context.comm.allgather(memory))
            if context.is_root:
                rates = {k: args.samples / statistics.median(v) for k, v in times.items()}
                ratios = {
                    k: statistics.median(a / b for a, b in zip(v, times["predict"], strict=True))
                    for k, v in times.items()
                }
                print(
                    f"{name}, {context.size} rank(s): hot {rates['hot']:,.0f}, forward "
                    f"{rates['forward']:,.0f}, predict {rates['predict']:,.0f} samples/s: "
                    f"{ratios['forward']:.2f} of forward, {ratios['hot']:.2f} of hot; at most "
                    f"{most:.0f} MiB a rank",
                    flush=True,
                )
    finally:
        context.barrier()
        if context.is_root:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
