"""Train a model as a TOML file says; run it under mpirun for several ranks."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

NAME = "train"
HELP = "train a model from a TOML file"
STOPPED = 75


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("config", help="the run configuration, a TOML file (docs/configuration.md)")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one value, e.g. optim.lr=0.1",
    )
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
        help="go on from the newest intact checkpoint in train.output",
    )
    start.add_argument(
        "--auto-resume",
        action="store_true",
        help="as --resume where there is a checkpoint, else start anew",
    )
    start.add_argument(
        "--resume-from", type=Path, metavar="FILE", help="go on from this checkpoint file"
    )
    start.add_argument(
        "--overwrite", action="store_true", help="throw away an earlier run in train.output"
    )


def folder_name(text: str) -> str:
    """A name that stays within its folder."""
    if not re.fullmatch(r"\w[\w.-]{0,99}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a name of letters, digits, '_', '-' and '.'"
        )
    return text


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train; all ranks call it together."""
    from msgspec.structs import replace

    from mpidl.comm.context import init
    from mpidl.config import load_on_root

    context = init()

    def say(text: str) -> None:
        if context.is_root:
            print(text, file=sys.stderr, flush=True)

    def note(text: str) -> None:
        say(f"note: {text}")

    config = load_on_root(context, args.config, args.overrides, note=note)
    if args.subfolder:
        config = replace(
            config,
            train=replace(config.train, output=str(Path(config.train.output) / args.subfolder)),
        )
    from mpidl.train.trainer import Trainer

    trainer = Trainer(config, context, say=say)
    say(
        f"{config.model.name}: {trainer.model.parameters.count:,} parameters; {len(trainer.reader):,} samples in "
        f"{len(trainer.reader.manifest.shards)} shard(s); {context.size} rank(s) on {context.nodes} node(s), "
        f"{context.threads} thread(s) each, on {context.cores.used} of {context.cores.allotted} allotted core(s); "
        f"{trainer.ops.describe()}"
    )
    trainer.prepare(
        resume=args.resume,
        auto_resume=args.auto_resume,
        resume_from=args.resume_from,
        overwrite=args.overwrite,
    )
    result = trainer.run()
    trainer.close()
    say(
        f"{'stopped' if result.stopped else 'done'} after {result.epochs} epoch(s): {result.evaluated_on} accuracy "
        f"{100 * result.accuracy:.2f} %, loss {result.loss:.4f} on {result.samples:,} samples; {result.seconds:.1f} s, "
        f"{result.samples_per_second:,.0f} samples/s\n"
        f"checkpoint: {result.checkpoint}; curves: {trainer.output / 'training.png'}"
    )
    report = trainer.strategy.report()
    if notes := figures(report):
        say(f"{config.sync.strategy}: {notes}")
    return asdict(result) | {"strategy": report, "status": STOPPED if result.stopped else 0}


def figures(report: dict[str, Any]) -> str:
    """What a strategy has to say of itself, in words."""
    from mpidl.sync import mean_and_largest

    mebibyte = 1 << 20
    texts = []
    if report.get("sent_bytes"):
        texts.append(f"{report['sent_bytes'] / mebibyte:,.1f} MiB sent by a rank")
    if "shard_bytes" in report:
        texts.append(
            f"a rank holds {report['parameter_bytes'] / mebibyte:,.2f} MiB of parameters, "
            f"{report['gradient_bytes'] / mebibyte:,.2f} of gradients and {report['shard_bytes'] / mebibyte:,.2f} of each "
            f"optimizer buffer, of {report['whole_bytes'] / mebibyte:,.2f} each"
        )
    if "spectral_gap" in report:
        texts.append(f"spectral gap of the graph {report['spectral_gap']:.3f}")
    if late := mean_and_largest(report):
        texts.append(f"staleness {late[0]:.2f} on average, {late[1]} at most")
    if "gradient_noise_scale" in report:
        texts.append(
            f"gradient noise scale {report['gradient_noise_scale']:,.0f} samples: a global batch up to about that still pays"
        )
    return "; ".join(texts)
