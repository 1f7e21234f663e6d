"""Predict for a sharded data set, or for raw files as of `mpidl shard`.

Writes what the task predicts: probabilities and classes, values, masks, or tokens; or what --output
names. All ranks take chunks of samples and write them into one HDF5 file; an interrupted prediction
goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpidl.cli.arguments import (
    add_backend,
    add_checkpoint,
    add_source_options,
    source_options,
)

if TYPE_CHECKING:
    from mpidl.comm.context import Context
    from mpidl.inference.sharded import Result

NAME = "predict"
HELP = "predictions for new data"
STOPPED = 75  # exit status after a signal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    from mpidl.inference.output import SUFFIXES
    from mpidl.inference.outputs import OUTPUTS

    add_checkpoint(parser)
    parser.add_argument(
        "data", type=Path, nargs="+", help="a sharded data set, or raw files as for 'mpidl shard'"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help=f"file to write: {', '.join(SUFFIXES)}; .h5 for predictions of any size",
    )
    parser.add_argument(
        "--output",
        action="append",
        default=[],
        metavar="NAME[:ARGUMENT]",
        help="what is written (may be given several times; default: what the task predicts): "
        + ", ".join(OUTPUTS),
    )
    parser.add_argument(
        "--metrics", action="store_true", help="compare with the targets, as 'mpidl evaluate' does"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument(
        "--restart", action="store_true", help="begin anew after an interrupted prediction"
    )
    add_source_options(parser)
    add_backend(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Predict. Collective."""
    from mpidl.comm.context import init
    from mpidl.inference.output import check_size
    from mpidl.inference.outputs import choose_outputs
    from mpidl.inference.predict import Predictor, identify, open_samples
    from mpidl.inference.sharded import Prediction, layout_of, predict
    from mpidl.observe.progress import Progress
    from mpidl.train.build import build_loss

    context = init()
    context.on_root(lambda: _check(args), "checking --out")
    predictor = Predictor(args.checkpoint, context, backend=args.backend)
    with context.fail_together("opening the data"):
        options = source_options(args)
        samples = open_samples(args.data, predictor.task, scored=args.metrics, **options)
        outputs = choose_outputs(args.output, predictor)
        about = identify(args.data, options)
        layout = layout_of(predictor, outputs, samples, about, scored=args.metrics)
        check_size(args.out, layout.samples * layout.row_bytes)
    task, config = predictor.task, predictor.config
    loss = build_loss(config.loss, task, predictor.ops) if args.metrics else None
    file = _working_file(args.out)
    progress = Progress(
        layout.samples // context.size, "samples", label="predicting", quiet=not context.is_root
    )
    result = predict(
        Prediction(predictor, outputs, samples, loss),
        file,
        layout,
        context,
        restart=args.restart,
        progress=progress.advance,
    )
    progress.close()
    counts = None
    if result.complete:
        classes = predictor.spec.target.classes or 0
        columns = list(layout.columns)
        counts = context.on_root(lambda: _conclude(args.out, file, columns, classes), "finishing")
    return _report(args, result, counts, context)


def _check(args: argparse.Namespace) -> None:
    """Refuse a file that cannot be written, before any work."""
    from mpidl.errors import ConfigError
    from mpidl.inference.output import check_target

    check_target(args.out)
    for path in dict.fromkeys((args.out, _working_file(args.out))):
        if path.exists() and not args.overwrite:
            raise ConfigError(
                "exists already",
                where=str(path),
                remedy="choose another --out, or add --overwrite",
            )


def _working_file(out: Path) -> Path:
    """The HDF5 file that all ranks write; a table is made of it, and it is removed then."""
    from mpidl.inference.output import HDF5

    return out if out.suffix == HDF5 else out.with_name(out.name + HDF5)


def _conclude(out: Path, file: Path, columns: list[str], classes: int) -> list[int] | None:
    """Count the predicted classes, and turn the file into a table where one is wanted."""
    from mpidl.inference.output import convert, count_labels

    counts = count_labels(file, classes)
    if file != out:
        convert(file, out, columns)
        file.unlink()
    return counts


def _report(
    args: argparse.Namespace, result: Result, counts: list[int] | None, context: Context
) -> dict[str, Any]:
    """What was done, for --json; also printed."""
    found: dict[str, Any] = {"samples": result.samples, "out": str(args.out)}
    if not result.complete:
        if context.is_root and not args.json:
            print(
                f"stopped by a signal after {result.done:,} of {result.chunks:,} chunks; the same "
                "command goes on"
            )
        return found | {"status": STOPPED, "done": result.done, "chunks": result.chunks}
    if counts is not None:
        found["per_class"] = counts
    if result.evaluation is not None:
        found |= result.evaluation.record() | dict(result.evaluation.details)
    if context.is_root and not args.json:
        classes = f"; samples per class: {counts}" if counts is not None else ""
        print(f"{result.samples:,} predictions written to {args.out}{classes}")
        if result.evaluation is not None:
            print(result.evaluation.describe())
    return found
