"""Train a model from a TOML file; run it under mpirun for several ranks."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpidl.cli.arguments import add_config
from mpidl.errors import STOPPED

if TYPE_CHECKING:
    from mpidl.train.events import Result
    from mpidl.train.trainer import Trainer

NAME = "train"
HELP = "train a model from a TOML file"
MIB = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    add_config(parser)
    parser.add_argument(
        "--subfolder",
        type=folder_name,
        metavar="NAME",
        help="write into this folder of train.output (a task of a job array)",
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--resume",
        action="store_true",
        help="resume from the latest intact checkpoint in train.output",
    )
    start.add_argument(
        "--auto-resume",
        action="store_true",
        help="as --resume where there is a checkpoint, else start from scratch",
    )
    start.add_argument(
        "--resume-from", type=Path, metavar="FILE", help="resume from this checkpoint file"
    )
    start.add_argument(
        "--overwrite", action="store_true", help="delete an earlier run in train.output"
    )


def folder_name(text: str) -> str:
    """A name that stays within its folder.

    Raises:
        argparse.ArgumentTypeError: It could lead elsewhere.
    """
    if not re.fullmatch(r"\w[\w.-]{0,99}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a name of letters, digits, '_', '-' and '.'"
        )
    return text


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train. Collective."""
    from msgspec.structs import replace

    from mpidl.comm.context import init
    from mpidl.config import load_on_root

    context = init()

    def say(text: str) -> None:
        if context.is_root:
            print(text, file=sys.stderr, flush=True)

    config, context = load_on_root(
        context, args.config, args.overrides, note=lambda text: say(f"note: {text}")
    )
    if args.subfolder:
        output = str(Path(config.train.output) / args.subfolder)
        config = replace(config, train=replace(config.train, output=output))
    from mpidl.train.trainer import Trainer

    trainer = Trainer(config, context, say=say)
    say(_describe_run(trainer))
    trainer.prepare(
        resume=args.resume,
        auto_resume=args.auto_resume,
        resume_from=args.resume_from,
        overwrite=args.overwrite,
    )
    result = trainer.run()
    trainer.close()
    say(_describe_result(result, trainer.output))
    report = trainer.parts.strategy.report()
    if figures := describe_report(report):
        say(f"{config.sync.strategy}: {figures}")
    return result.record() | {"strategy": report, "status": STOPPED if result.stopped else 0}


def _describe_run(trainer: Trainer) -> str:
    """The first line: model, data, ranks and device."""
    context, parts = trainer.context, trainer.parts
    return (
        f"{trainer.config.model.name}: {parts.model.parameters.count:,} parameters; "
        f"{len(parts.reader):,} samples in {len(parts.reader.manifest.shards)} shard(s); "
        f"{context.size} rank(s) on {context.nodes} node(s), {context.threads} thread(s) each, "
        f"on {context.cores.used} of {context.cores.allotted} allotted core(s); "
        f"{parts.model.ops.describe()}{_describe_channel(context.channel)}"
    )


def _describe_channel(channel: str) -> str:
    """Which messages are encrypted, if any are."""
    words = {"nodes": "messages between nodes", "all": "all messages"}
    return f"; {words[channel]} encrypted" if channel in words else ""


def _describe_result(result: Result, output: Path) -> str:
    curves = output / "training.png"
    shown = f"; curves: {curves}" if curves.is_file() else ""
    return (
        f"{'stopped' if result.stopped else 'done'} after {result.epochs} epoch(s): "
        f"{result.evaluated_on} {result.quality.describe()} on "
        f"{result.quality.samples:,} samples; {result.seconds:.1f} s, "
        f"{result.samples_per_second:,.0f} samples/s\n"
        f"checkpoint: {result.checkpoint}{shown}"
    )


def describe_report(report: dict[str, Any]) -> str:
    """The report of a strategy in one sentence, empty if there is nothing to say.

    Args:
        report: From `Strategy.report`.
    """
    from mpidl.sync import mean_and_largest

    texts = []
    if report.get("sent_bytes"):
        texts.append(f"{report['sent_bytes'] / MIB:,.1f} MiB sent by a rank")
    if "shard_bytes" in report:
        texts.append(
            f"a rank holds {report['parameter_bytes'] / MIB:,.2f} MiB of parameters, "
            f"{report['gradient_bytes'] / MIB:,.2f} of gradients and "
            f"{report['shard_bytes'] / MIB:,.2f} of each optimizer buffer, "
            f"of {report['whole_bytes'] / MIB:,.2f} each"
        )
    if "spectral_gap" in report:
        texts.append(f"spectral gap of the graph {report['spectral_gap']:.3f}")
    if late := mean_and_largest(report):
        texts.append(f"staleness {late[0]:.2f} on average, {late[1]} at most")
    if "gradient_noise_scale" in report:
        texts.append(
            f"gradient noise scale {report['gradient_noise_scale']:,.0f} samples: larger global "
            "batches than that bring little"
        )
    return "; ".join(texts)
