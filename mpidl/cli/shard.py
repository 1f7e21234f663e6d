"""Turn raw data into a sharded data set: shard files and manifest.json.

Under mpirun the ranks write their shards in parallel.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mpidl.cli.arguments import add_source_options, source_options

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


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Shard. Collective."""
    from mpidl.comm.context import init
    from mpidl.data.formats import open_source
    from mpidl.data.manifest import describe
    from mpidl.data.writer import WriteOptions, write_dataset
    from mpidl.errors import notice
    from mpidl.observe.progress import Progress

    context = init()
    with context.fail_together("opening the source"):
        source = open_source(args.source, **source_options(args))
    shards = args.shards or min(max(4, context.size), source.samples)
    options = WriteOptions(shards, args.shared, args.compress, args.label, args.overwrite)
    progress = Progress(
        source.samples // context.size, "samples", label="sharding", quiet=not context.is_root
    )
    notes = list(source.notes)
    manifest = write_dataset(
        source, args.out, options, context, progress.advance, note=notes.append
    )
    progress.close()
    summary = describe(manifest) | {"out": str(args.out), "notes": notes}
    if context.is_root:
        for note in notes:
            notice(note)
    if context.is_root and not args.json:
        print(f"{manifest.samples:,} samples in {len(manifest.shards)} file(s) in {args.out}:")
        for name, text in summary["fields"].items():
            print(f"  {name}: {text}")
    return summary
