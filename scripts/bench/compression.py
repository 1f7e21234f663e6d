"""Convergence and bytes of compressed exchange: mpirun -n 2 python scripts/bench/compression.py

Trains the sample CNN (scripts/configs/fashion-cnn.toml) once with each compressor, with the same
data, order and initial parameters, and prints test accuracy, test loss, and the gradient bytes that
a rank has sent.
"""

from __future__ import annotations

import argparse
import json

import mpidl  # noqa: F401  (MPI before anything else)
from mpidl.comm.context import Context, init
from mpidl.compression import COMPRESSORS
from mpidl.config import load_config
from mpidl.train.trainer import Trainer, usual_observers


def train(name: str, epochs: int, context: Context) -> dict[str, object]:
    settings = [
        f"sync.compression.name={name}",
        f"train.epochs={epochs}",
        f"train.output=runs/compression-{name}",
    ]
    config = load_config("scripts/configs/fashion-cnn.toml", settings)
    observers = usual_observers(config, context, print, quiet=True)
    trainer = Trainer(config, context, observers=observers)
    trainer.prepare(overwrite=True)
    result = trainer.run()
    trainer.close()
    length = trainer.parts.model.parameters.length
    uncompressed = 8 * (context.size - 1) / context.size * length * result.steps
    sent = trainer.parts.strategy.report_sent()
    return {
        "compression": name,
        "accuracy": result.quality.metrics["accuracy"],
        "loss": result.quality.loss,
        "sent_mb": sent / 1e6,
        "times_fewer_bytes": uncompressed / sent if sent else 1.0,
        "seconds": result.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--names", default=",".join(("none", *COMPRESSORS)))
    args = parser.parse_args()
    context = init()
    for name in args.names.split(","):
        row = train(name, args.epochs, context)
        if context.is_root:
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
