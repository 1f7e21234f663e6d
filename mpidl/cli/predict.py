"""Predict class probabilities for a sharded data set or a raw file (.npy, .npz, IDX, CSV, images, HDF5)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mpidl.cli.source import add_source_arguments, source_options

NAME = "predict"
HELP = "class probabilities for new data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="a checkpoint file, or the output folder of a run (its best checkpoint)",
    )
    parser.add_argument(
        "data", type=Path, nargs="+", help="a sharded data set, or raw files as for 'mpidl shard'"
    )
    parser.add_argument("--out", type=Path, required=True, help="where to write: .npz, .h5 or .csv")
    add_source_arguments(parser)
    parser.add_argument("--backend", default="auto", help="auto, numpy or cupy")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Predict; all ranks call it together."""
    from mpidl.comm.context import init
    from mpidl.inference.output import check_target, write_predictions
    from mpidl.inference.predict import Predictor, open_samples, predict

    context = init()
    context.on_root(lambda: check_target(args.out), "checking --out")
    predictor = Predictor(args.checkpoint, context, backend=args.backend)
    with context.fail_together("opening the data"):
        samples = open_samples(args.data, predictor.spec, **source_options(args))
    probabilities = predict(predictor, samples, context)
    counts = context.on_root(
        lambda: write_predictions(args.out, probabilities), f"writing {args.out}"
    )
    if context.is_root and not args.json:
        print(f"{len(samples):,} predictions written to {args.out}; samples per class: {counts}")
    return {"samples": len(samples), "out": str(args.out), "per_class": counts}
