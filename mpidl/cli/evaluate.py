"""Evaluate a checkpoint on a sharded data set: mean loss and accuracy, exact over any number of ranks."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

NAME = "evaluate"
HELP = "loss and accuracy of a checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="a checkpoint file, or the output folder of a run (its best checkpoint)",
    )
    parser.add_argument("--data", help="a sharded data set (default: the test data of the run)")
    parser.add_argument("--backend", default="auto", help="auto, numpy or cupy")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate; all ranks call it together."""
    from mpidl.comm.context import init
    from mpidl.data import Reader
    from mpidl.errors import ConfigError
    from mpidl.inference.predict import Predictor
    from mpidl.nn import CrossEntropy
    from mpidl.train.evaluate import evaluate

    context = init()
    predictor = Predictor(args.checkpoint, context, backend=args.backend)
    folder = args.data or predictor.config.data.test
    with context.fail_together("choosing the data"):
        if folder is None:
            raise ConfigError(
                "the run has no test data",
                where=str(args.checkpoint),
                remedy="name a data set with --data",
            )
    reader = Reader(folder, context=context, driver="posix")
    with context.fail_together("checking the data"):
        predictor.spec.check(reader.manifest, folder)
    result = evaluate(
        predictor.model, CrossEntropy(predictor.ops), predictor.inputs, reader, context, 256
    )
    reader.close()
    if context.is_root and not args.json:
        print(
            f"accuracy {100 * result.accuracy:.2f} %, loss {result.loss:.4f} on {result.samples:,} samples of {folder}"
        )
    return asdict(result) | {"checkpoint": str(predictor.path)}
