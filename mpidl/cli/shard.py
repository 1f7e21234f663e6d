"""Turn raw data into a sharded data set: shard files and manifest.json.

Under mpirun the ranks write their shards in parallel.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpidl.cli.arguments import add_seal_for, add_source_options, source_options

if TYPE_CHECKING:
    from mpidl.comm.context import Context
    from mpidl.data.formats.source import Source
    from mpidl.data.manifest import Manifest

NAME = "shard"
HELP = "make a sharded data set from raw files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    from mpidl.data.formats import describe_formats

    parser.add_argument(
        "source",
        type=Path,
        nargs="+",
        help=f"raw files or a folder: {describe_formats()}",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the data set")
    parser.add_argument(
        "--shards",
        type=int,
        default=0,
        help="number of shard files (default: one per rank, at least 4)",
    )
    parser.add_argument("--shared", action="store_true", help="one file that all ranks share")
    parser.add_argument("--compress", choices=("gzip", "lzf"), help="compress the shards")
    parser.add_argument(
        "--split",
        metavar="F,F",
        help="fractions of the samples that become data sets of their own, as in 0.9,0.1",
    )
    parser.add_argument(
        "--split-names",
        default="train,test",
        help="their folders below --out (default: %(default)s)",
    )
    parser.add_argument(
        "--stratify", action="store_true", help="split each class in these proportions"
    )
    parser.add_argument("--seed", type=int, default=0, help="of --split (default: %(default)s)")
    add_seal_for(parser)
    add_source_options(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing data set")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Shard. Collective."""
    from mpidl.comm.context import init
    from mpidl.data.formats import open_source
    from mpidl.data.writer import WriteOptions, write_parts
    from mpidl.errors import notice
    from mpidl.observe.progress import Progress

    context = init()
    with context.fail_together("opening the source"):
        source = open_source(args.source, **source_options(args))
        fractions = _fractions(args)
    parts = {"": source} if fractions is None else _parts(args, source, fractions, context)
    smallest = min(part.samples for part in parts.values())
    shards = args.shards or min(max(4, context.size), smallest)
    options = WriteOptions(shards, args.shared, args.compress, args.overwrite, tuple(args.seal_for))
    progress = Progress(
        source.samples // context.size, "samples", label="sharding", quiet=not context.is_root
    )
    notes = list(source.notes)
    manifests = write_parts(parts, args.out, options, context, progress.advance, note=notes.append)
    progress.close()
    notes = list(dict.fromkeys(notes))  # several parts may have the same
    if context.is_root:
        for note in notes:
            notice(note)
    return _summary(args, manifests, notes, show=context.is_root and not args.json)


def _fractions(args: argparse.Namespace) -> dict[str, float] | None:
    """What --split describes: name of the folder -> fraction; None: no parts."""
    from mpidl.data.split import parse_split
    from mpidl.errors import ConfigError

    if args.split is None:
        if args.stratify:
            raise ConfigError(
                "--stratify works with --split only", remedy="add --split 0.9,0.1, or leave it out"
            )
        return None
    if args.seed < 0:
        raise ConfigError(f"--seed is {args.seed}, but must not be negative", remedy="use 0")
    return parse_split(args.split, args.split_names)


def _parts(
    args: argparse.Namespace, source: Source, fractions: dict[str, float], context: Context
) -> dict[str, Source]:
    """The samples of each part. Collective: the ranks share the reading of classes."""
    from mpidl.data.split import by_class, divide, read_classes, subset

    groups = [np.arange(source.samples)]
    if args.stratify:
        with context.fail_together("reading the classes"):
            own = (
                source.samples * rank // context.size for rank in (context.rank, context.rank + 1)
            )
            classes = read_classes(source, *own)
        groups = by_class(np.concatenate(context.allgather_object(classes, np.ndarray)))
    with context.fail_together("dividing the samples"):
        found = divide(groups, fractions, args.seed)
        return {name: subset(source, numbers) for name, numbers in found.items()}


def _summary(
    args: argparse.Namespace, manifests: dict[str, Manifest], notes: list[str], *, show: bool
) -> dict[str, Any]:
    """What was written, for --json; also printed, to `show` it."""
    from mpidl.data.manifest import describe

    summaries = {name: describe(manifest) for name, manifest in manifests.items()}
    for name, summary in summaries.items() if show else ():
        where = args.out / name
        print(f"{summary['samples']:,} samples in {summary['shards']} file(s) in {where}:")
        for field, text in summary["fields"].items():
            print(f"  {field}: {text}")
    summary = summaries.get("", {"parts": summaries})
    return summary | {"out": str(args.out), "notes": notes}
