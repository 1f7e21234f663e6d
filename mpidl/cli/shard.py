"""Turn raw data into a sharded data set: shard files and manifest.json.

Under mpirun the ranks write their shards in parallel.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpidl.cli.arguments import add_source_options, source_options

if TYPE_CHECKING:
    from mpidl.data.split import Split

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
    add_source_options(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing data set")
    parser.add_argument(
        "--split",
        metavar="FRACTIONS",
        help="divide the samples at random, e.g. 0.9,0.1 into the data sets OUT/train, OUT/test",
    )
    parser.add_argument("--split-names", metavar="NAMES", help="of the parts (default: train,test)")
    parser.add_argument(
        "--stratify", action="store_true", help="divide each class by these fractions"
    )
    parser.add_argument("--seed", type=int, default=0, help="of --split (default: %(default)s)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Shard. Collective."""
    from mpidl.comm.context import init
    from mpidl.data.formats import open_source
    from mpidl.data.manifest import describe
    from mpidl.data.split import divide
    from mpidl.data.writer import WriteOptions, write_parts
    from mpidl.errors import notice
    from mpidl.observe.progress import Progress

    context = init()
    with context.fail_together("opening the source"):
        split = _read_split(args)
        source = open_source(args.source, **source_options(args))
    parts = divide(source, split, context) if split else {"": source}
    options = WriteOptions(args.shards, args.shared, args.compress, args.overwrite)
    progress = Progress(
        source.samples // context.size, "samples", label="sharding", quiet=not context.is_root
    )
    notes = list(source.notes)
    manifests = write_parts(
        source, parts, args.out, options, context, progress.advance, note=notes.append
    )
    progress.close()
    described = {name: describe(manifest) for name, manifest in manifests.items()}
    summary = described.get("") or {"splits": described}
    summary |= {"out": str(args.out), "notes": notes}
    if context.is_root:
        for note in notes:
            notice(note)
    if context.is_root and not args.json:
        for name, about in described.items():
            _show(args.out / name, about)
    return summary


def _read_split(args: argparse.Namespace) -> Split | None:
    from mpidl.data.split import Split
    from mpidl.errors import ConfigError

    if args.split:
        return Split.parse(args.split, args.split_names, args.seed, args.stratify)
    for option, given in (("--stratify", args.stratify), ("--split-names", args.split_names)):
        if given:
            raise ConfigError("works beside --split only", where=option, remedy="add --split")
    return None


def _show(folder: Path, about: dict[str, Any]) -> None:
    print(f"{about['samples']:,} samples in {about['shards']} file(s) in {folder}:")
    for name, text in about["fields"].items():
        print(f"  {name}: {text}")
