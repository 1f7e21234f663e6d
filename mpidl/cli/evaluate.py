"""Evaluate a checkpoint on a sharded data set: loss and metrics, exact on any rank count.

The loss is that of the run, the metrics are those of its task.
"""

from __future__ import annotations

import argparse
from typing import Any

from mpidl.cli.arguments import add_backend, add_checkpoint

NAME = "evaluate"
HELP = "loss and metrics of a checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    add_checkpoint(parser)
    parser.add_argument("--data", help="a sharded data set (default: the test data of the run)")
    add_backend(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate. Collective."""
    from mpidl.comm.context import init
    from mpidl.data import Reader
    from mpidl.errors import ConfigError
    from mpidl.inference.predict import Predictor
    from mpidl.train.build import build_loss
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
        predictor.task.check(reader.manifest, folder)
        reader.select([*predictor.spec.field_names, *predictor.task.extra_fields])
    loss = build_loss(predictor.config.loss, predictor.task, predictor.ops)
    result = evaluate(predictor.model, loss, predictor.inputs, reader, context, 256)
    reader.close()
    if context.is_root and not args.json:
        print(f"{result.describe()} on {result.samples:,} samples of {folder}")
    return result.record() | dict(result.details) | {"checkpoint": str(predictor.path)}
