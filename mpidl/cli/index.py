"""Make a data set of HDF5 or NetCDF-4 files that stay where they are: a manifest, and no copy.

Samples lie along the first axis of datasets. Under mpirun the ranks divide the samples that are
read for classes, means and standard deviations.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpidl.data.index import Indexed

NAME = "index"
HELP = "make a data set of HDF5 or NetCDF files in place, without a copy"
SHOWN = 3  # files with bad chunks; the others are counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument(
        "files",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="HDF5 or NetCDF-4 files with the same datasets, in the order of their samples",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the data set")
    for role in ("feature", "label"):
        text = f"a dataset that is a {role}, by name or path (group/name); may be repeated"
        _add_names(parser, role, text)
    parser.add_argument(
        "--rows",
        type=row_range,
        default=(0, None),
        metavar="START:STOP",
        help="take these samples only, counted over all files, as in 0:9000 or 9000:",
    )
    parser.add_argument(
        "--checksum",
        action="store_true",
        help="store the SHA-256 of each file, which data.verify then checks",
    )
    parser.add_argument(
        "--no-statistics",
        dest="statistics",
        action="store_false",
        help="no mean and standard deviation of features: set data.mean and data.std",
    )
    parser.add_argument(
        "--sample",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="estimate them from evenly spaced samples, as in 0.01 (default: from all)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing data set")


def _add_names(parser: argparse.ArgumentParser, role: str, text: str) -> None:
    parser.add_argument(
        f"--{role}", dest=f"{role}s", action="append", default=[], metavar="NAME", help=text
    )


def row_range(text: str) -> tuple[int, int | None]:
    """START:STOP, either of which may be left out.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    start, colon, stop = text.partition(":")
    try:
        if not colon:
            raise ValueError
        return int(start or 0), int(stop) if stop else None
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not START:STOP") from error


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Index. Collective."""
    from mpidl.comm.context import init
    from mpidl.data.index import IndexOptions, index_files
    from mpidl.data.manifest import describe
    from mpidl.errors import notice
    from mpidl.observe.progress import Progress

    context = init()
    options = IndexOptions(
        features=args.features,
        labels=args.labels,
        rows=args.rows,
        checksum=args.checksum,
        statistics=args.statistics,
        sample=args.sample,
        overwrite=args.overwrite,
    )
    notes: list[str] = []
    progress = Progress(0, "samples", label="reading", quiet=not context.is_root)

    def advance(count: int, total: int) -> None:
        progress.total = total
        progress.advance(count)

    indexed = index_files(
        args.files, args.out, options, context, note=notes.append, progress=advance
    )
    progress.close()
    summary = describe(indexed.manifest) | {
        "out": str(args.out),
        "notes": notes,
        "missing": {name: asdict(found) for name, found in indexed.missing.items()},
        "sampled": indexed.manifest.sampled,
        "slow": indexed.slow,
    }
    if context.is_root:
        for note in notes + describe_slow(indexed):
            notice(note)
    if context.is_root and not args.json:
        print_index(args.out, summary)
    return summary


def describe_slow(indexed: Indexed) -> list[str]:
    """A note for each of the first files with bad chunks, with the command that mends it."""
    found = [
        f"{path}: slow to read samples from: "
        + "; ".join(f"{name}: {cost}" for name, cost in entry["fields"].items())
        + f"\n  what to do: {entry['command']}"
        for path, entry in indexed.slow.items()
    ]
    more = len(found) - SHOWN
    return found[:SHOWN] + ([f"{more} more files have such chunks (see --json)"] * (more > 0))


def print_index(folder: Path, summary: dict[str, Any]) -> None:
    """Print what was indexed."""
    print(f"{summary['samples']:,} samples in {summary['shards']} file(s) in place; {folder}:")
    for name, text in summary["fields"].items():
        print(f"  {name}: {text}")
    if summary["sampled"]:
        print(
            f"mean and standard deviation are estimates from {summary['sampled']:,} evenly spaced "
            f"samples of {summary['samples']:,}"
        )
