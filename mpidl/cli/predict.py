"""Predict class probabilities for a sharded data set, or for raw files as of `mpidl shard`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mpidl.cli.arguments import (
    add_backend,
    add_checkpoint,
    add_source_options,
    source_options,
)

NAME = "predict"
HELP = "class probabilities for new data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    from mpidl.inference.output import WRITERS

    add_checkpoint(parser)
    parser.add_argument(
        "data", type=Path, nargs="+", help="a sharded data set, or raw files as for 'mpidl shard'"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help=f"file to write: {', '.join(WRITERS)}"
    )
    add_source_options(parser)
    add_backend(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Predict. Collective."""
    from mpidl.comm.context import init
    from mpidl.inference.output import check_target, write_predictions
    from mpidl.inference.predict import Predictor, open_samples, predict

    context = init()
    context.on_root(lambda: check_target(args.out), "checking --out")
    predictor = Predictor(args.checkpoint, context, backend=args.backend)
    with context.fail_together("opening the data"):
        samples = open_samples(args.data, predictor.spec, **source_options(args))
    probabilities = predict(predictor, samples, context)

    def write() -> list[int]:
        assert probabilities is not None  # on rank 0
        return write_predictions(args.out, probabilities)

    counts = context.on_root(write, f"writing {args.out}")
    if context.is_root and not args.json:
        print(f"{len(samples):,} predictions written to {args.out}; samples per class: {counts}")
    return {"samples": len(samples), "out": str(args.out), "per_class": counts}
