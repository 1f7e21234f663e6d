"""Train a model again as its bundle says, and compare all bits of its parameters.

Runs under mpirun with any number of ranks that gives the same bits (docs/strategies.md). What
differs from then (code, data, environment) is said first; exit status 1 if a bit differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpidl.cli.verify import add_trusted

if TYPE_CHECKING:
    from mpidl.comm.context import Context
    from mpidl.config import Config
    from mpidl.train.provenance import Provenance

NAME = "reproduce"
HELP = "train a model again as its bundle says, and compare bits"
SHOWN = 5  # names of parameters that differ


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("bundle", type=Path, help="made by 'mpidl bundle'")
    add_trusted(parser)
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="of the new run, in place of train.output"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one value: where the data lie now, e.g. data.train=/new/place",
    )
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier run there")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train again and compare. Collective."""
    from mpidl.comm.context import init
    from mpidl.train import checkpoint as ckpt
    from mpidl.train.provenance import digests
    from mpidl.train.trainer import Trainer

    context = init()

    def say(text: str) -> None:
        if context.is_root:
            print(text, file=sys.stderr, flush=True)

    provenance = _read(args, context, say)
    with context.fail_together("reading the configuration"):
        config = _configuration(provenance, args)
    trainer = Trainer(config, context, say=say)
    changes = context.on_root(
        lambda: _changes(provenance, trainer.saver.origin), "comparing", list[str]
    )
    for text in changes:
        say(f"differs: {text}")
    trainer.prepare(overwrite=args.overwrite)
    result = trainer.run()
    trainer.close()
    new = Path(str(result.checkpoint))
    now = context.on_root(lambda: digests(ckpt.read(new)), f"reading {new}", dict[str, str])
    then = provenance.arrays
    wrong = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
    if result.stopped:
        say("stopped by a signal before the end: nothing can be compared")
    elif context.is_root and not args.json:
        _print(wrong, len(then), changes)
    equal = not wrong and not result.stopped
    return {
        "equal": equal,
        "differ": wrong,
        "changes": changes,
        "checkpoint": str(new),
        "status": 0 if equal else 1,
    }


def _read(args: argparse.Namespace, context: Context, say: Callable[[str], None]) -> Provenance:
    """The provenance in the bundle, verified on rank 0. Collective."""
    import msgspec

    from mpidl.cli.verify import load_trusted
    from mpidl.train.provenance import Provenance, open_bundle

    def read() -> tuple[bytes, str]:
        found, signatory = open_bundle(args.bundle, load_trusted(args.trusted))
        return msgspec.json.encode(found), signatory.name

    encoded, name = context.on_root(read, f"reading {args.bundle}", tuple[bytes, str])
    found = msgspec.json.decode(encoded, type=Provenance)
    say(f"step {found.chosen.step} of {found.subject[0].name}, signed by {name}")
    return found


def _configuration(provenance: Provenance, args: argparse.Namespace) -> Config:
    """The configuration of then, up to its step; the site's security holds, not that of then."""
    from mpidl.config import build_config
    from mpidl.config.load import override

    chosen = provenance.chosen
    tree = {key: value for key, value in chosen.configuration.items() if key != "security"}
    given = {override(tree, text): text for text in args.overrides}
    train = dict(tree.get("train", {}))
    tree["train"] = train | {"output": args.output, "max_steps": chosen.step}
    return build_config(tree, str(args.bundle), given)


def _changes(provenance: Provenance, now: Any) -> list[str]:
    """What differs between then and now, in words."""
    jobs = provenance.jobs
    several = [f"the run had {len(jobs)} different jobs"] if len(jobs) > 1 else []
    return several + jobs[-1].differences(now)


def _print(wrong: list[str], count: int, changes: list[str]) -> None:
    if not wrong:
        print(f"equal: all bits of {count} parameters and states")
        return
    more = ", ..." if len(wrong) > SHOWN else ""
    reason = "; ".join(changes) or "nothing that is recorded has changed: is the strategy exact?"
    print(f"NOT EQUAL: {len(wrong)} of {count} differ ({', '.join(wrong[:SHOWN])}{more}); {reason}")
