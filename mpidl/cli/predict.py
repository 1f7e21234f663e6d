"""Predict for a sharded data set, for raw files as of `mpidl shard`, or for a folder of arrivals.

Writes what the task predicts: probabilities and classes, values, masks, or tokens; or what --output
names. All ranks take chunks of samples and write them into one HDF5 file; an interrupted prediction
goes on when the same command is given again. With --watch, files are scored as they arrive.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpidl.cli.arguments import (
    add_backend,
    add_checkpoint,
    add_seal_for,
    add_source_options,
    source_options,
)
from mpidl.errors import STOPPED

if TYPE_CHECKING:
    from mpidl.comm.context import Context
    from mpidl.inference.job import Job, Outcome
    from mpidl.inference.store import Layout
    from mpidl.observe.progress import Progress
    from mpidl.security.journal import Task

NAME = "predict"
HELP = "predictions for new data"
LISTED = 100  # classes whose samples are printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    from mpidl.inference.output import SUFFIXES
    from mpidl.inference.outputs import OUTPUTS

    add_checkpoint(parser)
    parser.add_argument(
        "data", type=Path, nargs="*", help="a sharded data set, or raw files as for 'mpidl shard'"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help=f"file to write: {', '.join(SUFFIXES)}; .h5 for predictions of any size; with --watch "
        "the folder of the results (default: the watched one)",
    )
    parser.add_argument(
        "--output",
        action="append",
        default=[],
        metavar="NAME[:ARGUMENT],...",
        help="what is written (default: what the task predicts): " + ", ".join(OUTPUTS),
    )
    parser.add_argument(
        "--metrics", action="store_true", help="compare with the targets, as 'mpidl evaluate' does"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument(
        "--restart", action="store_true", help="begin anew after an interrupted prediction"
    )
    add_seal_for(parser)
    _add_watch(parser, SUFFIXES)
    add_source_options(parser)
    add_backend(parser)


def _add_watch(parser: argparse.ArgumentParser, suffixes: tuple[str, ...]) -> None:
    """How a folder is watched."""
    parser.add_argument(
        "--watch",
        type=Path,
        metavar="FOLDER",
        help="score the files that arrive there, until SIGTERM, SIGINT or a file STOP",
    )
    parser.add_argument(
        "--pattern", default="*", help="with --watch: names of the files (default: all)"
    )
    parser.add_argument(
        "--settle",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="with --watch: a file is complete when it has not changed for so long "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--suffix",
        choices=suffixes,
        default=suffixes[0],
        help="with --watch: of the results (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Predict. Collective."""
    from mpidl.comm.context import init
    from mpidl.security.journal import audited

    context = init()
    with audited(NAME, context, args.checkpoint) as task:
        return _predict(args, context, task)


def _predict(args: argparse.Namespace, context: Context, task: Task) -> dict[str, Any]:
    from mpidl.inference.job import Job, Settings
    from mpidl.inference.predict import Predictor
    from mpidl.train.signals import StopRequest

    with context.fail_together("reading the command line"):
        _check(args)
    predictor = Predictor(args.checkpoint, context, backend=args.backend)
    task.add_file("model.loaded", predictor.path)
    settings = Settings(
        tuple(word for text in args.output for word in text.split(",")),
        args.metrics,
        args.overwrite or args.watch is not None,
        source_options(args),
        args.seal_for,
    )
    job = Job(predictor, settings, context)
    for path in args.data:
        task.add_data(path)
    if args.watch is not None:
        return _watch(args, job, task)
    progress = _Shown(context)
    with StopRequest.installed() as stop:
        outcome = job.run(args.data, args.out, stop, restart=args.restart, begin=progress.begin)
    progress.close()
    if outcome.result.complete:
        task.add_file("predict.written", args.out, samples=outcome.result.samples)
    return _report(args, outcome, context)


def _check(args: argparse.Namespace) -> None:
    """Refuse a command line that contradicts itself.

    Raises:
        ConfigError: It does.
    """
    from mpidl.errors import ConfigError

    if args.watch is None:
        if not args.data or args.out is None:
            raise ConfigError(
                "there is no data, or no file to write",
                where="mpidl predict",
                remedy="write mpidl predict RUN DATA --out FILE, or RUN --watch FOLDER",
            )
        return
    if args.data or args.metrics or args.restart:
        raise ConfigError(
            "a folder is watched: data, --metrics and --restart have no meaning",
            where="--watch",
            remedy="leave them out",
        )
    if not 0 <= args.settle < math.inf:
        raise ConfigError(
            f"is {args.settle}", where="--settle", remedy="give a number of seconds from 0"
        )


class _Shown:
    """Progress, once the number of samples is known."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._progress: Progress | None = None

    def begin(self, layout: Layout, done: int) -> Callable[[int], None]:
        """See `Job.run`."""
        from mpidl.observe.progress import Progress

        quiet = not self._context.is_root
        label, total = "predicting", layout.samples
        shown = Progress(total, "samples", label=label, initial=done, quiet=quiet)
        self._progress = shown
        return lambda count: shown.advance(count - shown.done)

    def close(self) -> None:
        """Finish the bar."""
        if self._progress is not None:
            self._progress.close()


def _watch(args: argparse.Namespace, job: Job, task: Task) -> dict[str, Any]:
    """Score files as they arrive. Collective."""
    import signal
    import sys

    from mpidl.inference.watch import Inbox, Watch
    from mpidl.train.signals import StopRequest

    context, out = job.context, args.out or args.watch
    inbox = None
    with context.fail_together("opening the folder"):
        if context.is_root:
            inbox = Inbox(args.watch, out, pattern=args.pattern, settle=args.settle)

    def say(text: str) -> None:
        if context.is_root:
            print(text, file=sys.stderr, flush=True)

    watch = Watch(job, inbox, out, args.suffix, say)
    with StopRequest.installed(signal.SIGINT) as stop:
        say(f"watching {args.watch}; end with SIGTERM or a file {args.watch / 'STOP'}")
        unfinished = watch.run(stop)
    task.add("predict.watched", object=args.watch, files=watch.done, failed=watch.failed)
    if context.is_root and not args.json:
        print(f"{watch.done:,} file(s) scored, {watch.failed:,} could not be")
    return {
        "files": watch.done,
        "failed": watch.failed,
        "out": str(out),
        "status": STOPPED if unfinished else 0,
    }


def _report(args: argparse.Namespace, outcome: Outcome, context: Context) -> dict[str, Any]:
    """What was done, for --json; also printed."""
    result, counts = outcome.result, outcome.per_class
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
        few = counts is not None and len(counts) <= LISTED
        classes = f"; samples per class: {counts}" if few else ""
        print(f"{result.samples:,} predictions written to {args.out}{classes}")
        if result.evaluation is not None:
            print(result.evaluation.describe())
    return found
