"""Train with several strategies on the same data; compare loss over time, samples and bytes.

Run it under mpirun.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from mpidl.cli.arguments import add_config

NAME = "compare"
HELP = "compare strategies on the same data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    from mpidl.sync import STRATEGIES

    add_config(parser)
    parser.add_argument(
        "--strategies",
        required=True,
        help='for example "allreduce,local_sgd,gossip", or with options '
        f'"allreduce gossip:graph=ring,period=2"; names: {", ".join(STRATEGIES)}',
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/compare"), help="folder for runs, table and plot"
    )
    parser.add_argument(
        "--slow",
        metavar="RANK:FACTOR",
        help="train also with one rank slowed down, and show how much speed the strategies keep",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compare. Collective."""
    from mpidl.comm.context import init
    from mpidl.errors import PlatformError
    from mpidl.files import write_file
    from mpidl.observe.plot import plot_comparison
    from mpidl.train.compare import compare, split_specs, table

    context = init()
    with context.fail_together("reading the command line"):
        specs, slow = split_specs(args.strategies), _slow(args.slow, context.size)

    def say(text: str) -> None:
        if context.is_root:
            print(text, file=sys.stderr, flush=True)

    outcomes = compare(args.config, args.overrides, specs, args.out, context, slow=slow, say=say)
    rows = [outcome.record() for outcome in outcomes]

    def write() -> None:
        text = table(outcomes)
        write_file(args.out / "comparison.md", f"{text}\n".encode())
        write_file(args.out / "comparison.json", f"{json.dumps(rows, indent=1)}\n".encode())
        try:
            title = f"{context.size} ranks, {args.config}"
            plot_comparison(rows, args.out / "comparison.png", title)
        except PlatformError as error:
            say(f"note: {error}")
        if not args.json:
            print(text)

    context.on_root(write, f"writing to {args.out}")
    return {
        "outcomes": [{k: v for k, v in row.items() if k != "records"} for row in rows],
        "out": str(args.out),
    }


def _slow(text: str | None, size: int) -> tuple[int, float] | None:
    """The rank and its factor in RANK:FACTOR."""
    from mpidl.errors import ConfigError

    if text is None:
        return None
    rank, _, factor = text.partition(":")
    try:
        found = int(rank), float(factor or 5)
    except ValueError:
        found = -1, 0.0
    if not 0 <= found[0] < size or not 1 <= found[1] < math.inf:
        raise ConfigError(
            f"cannot use {text!r}",
            where="--slow",
            remedy=f"write a rank below {size} and a factor, like 1:5",
        )
    return found
