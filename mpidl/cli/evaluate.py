"""Evaluate a checkpoint on a sharded data set: loss and metrics, exact on any rank count.

The loss is that of the run, the metrics are those of its task.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpidl.cli.arguments import add_backend, add_checkpoint

if TYPE_CHECKING:
    from mpidl.comm.context import Context
    from mpidl.inference.predict import Predictor
    from mpidl.security.journal import Task
    from mpidl.task import Evaluation

NAME = "evaluate"
HELP = "loss and metrics of a checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    add_checkpoint(parser)
    parser.add_argument("--data", help="a sharded data set (default: the test data of the run)")
    parser.add_argument(
        "--plot", type=Path, help="write the confusion matrix there as a picture (needs matplotlib)"
    )
    add_backend(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate. Collective."""
    from mpidl.comm.context import init
    from mpidl.security.journal import audited

    context = init()
    with audited(NAME, context, args.checkpoint) as task:
        return _evaluate(args, context, task)


def _evaluate(args: argparse.Namespace, context: Context, task: Task) -> dict[str, Any]:
    from mpidl.errors import ConfigError
    from mpidl.inference.predict import Predictor
    from mpidl.observe.plot import check_plot
    from mpidl.train.admission import open_signed
    from mpidl.train.build import build_loss
    from mpidl.train.evaluate import evaluate

    if args.plot:
        context.on_root(lambda: check_plot(args.plot), "checking --plot")
    predictor = Predictor(args.checkpoint, context, backend=args.backend)
    task.add_file("model.loaded", predictor.path)
    folder = args.data or predictor.config.data.test
    with context.fail_together("choosing the data"):
        if folder is None:
            raise ConfigError(
                "the run has no test data",
                where=str(args.checkpoint),
                remedy="name a data set with --data",
            )
    reader = open_signed(folder, context, driver="posix")
    task.add_data(folder)
    with context.fail_together("checking the data"):
        predictor.task.check(reader.manifest, folder)
        reader.select([*predictor.spec.field_names, *predictor.task.extra_fields])
    loss = build_loss(predictor.config.loss, predictor.task, predictor.ops)
    result = evaluate(predictor.model, loss, predictor.inputs, reader, context, 256)
    reader.close()
    task.add("evaluate.result", **result.record())
    if args.plot:
        context.on_root(lambda: _draw(result, predictor, folder, args.plot), "drawing")
    if context.is_root and not args.json:
        print(f"{result.describe()} on {result.samples:,} samples of {folder}")
    return result.record() | dict(result.details) | {"checkpoint": str(predictor.path)}


def _draw(result: Evaluation, predictor: Predictor, folder: str, path: Path) -> None:
    """Draw the confusion matrix.

    Raises:
        ConfigError: There is none.
    """
    import numpy as np

    from mpidl.errors import ConfigError
    from mpidl.observe.confusion import plot_confusion

    counts = result.details.get("confusion_matrix")
    if counts is None:
        raise ConfigError(
            f"the task {predictor.spec.task!r} has no confusion matrix for this data",
            where="--plot",
            remedy="leave out --plot; classification and segmentation have one, with up to 1,000 "
            "classes",
        )
    names = predictor.spec.target.class_names
    plot_confusion(np.array(counts), names, path, f"{result.describe()} on {folder}")
