"""Predict for a sharded data set, or for raw files as of `mpidl shard`.

Writes what the task predicts: probabilities and classes, values, masks, or tokens.
"""

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
HELP = "predictions for new data"


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
    import numpy as np

    from mpidl.comm.context import init
    from mpidl.inference.output import check_target, write_predictions
    from mpidl.inference.predict import Predictor, open_samples, predict

    context = init()
    context.on_root(lambda: check_target(args.out), "checking --out")
    predictor = Predictor(args.checkpoint, context, backend=args.backend)
    with context.fail_together("opening the data"):
        samples = open_samples(args.data, predictor.task, **source_options(args))
    outputs = predict(predictor, samples, context)

    def write() -> list[int] | None:
        if outputs is None:
            return None  # only rank 0 has them
        predictions = predictor.task.predictions(outputs)
        write_predictions(args.out, predictions)
        labels = predictions.get("label")
        if labels is None or labels.ndim != 1:
            return None
        return np.bincount(labels, minlength=outputs.shape[1]).tolist()  # type: ignore[no-any-return]

    counts = context.on_root(write, f"writing {args.out}")
    found: dict[str, Any] = {"samples": len(samples), "out": str(args.out)}
    if counts is not None:
        found["per_class"] = counts
    if context.is_root and not args.json:
        classes = f"; samples per class: {counts}" if counts is not None else ""
        print(f"{len(samples):,} predictions written to {args.out}{classes}")
    return found
