"""What the commands that read raw files ask about them, in one place."""

from __future__ import annotations

import argparse
from typing import Any


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say how raw files are to be read."""
    parser.add_argument("--label", help="name of the label field or CSV column")
    parser.add_argument(
        "--header",
        action=argparse.BooleanOptionalAction,
        help="whether the first line of a CSV file names its columns (default: find out)",
    )
    order = parser.add_mutually_exclusive_group()
    order.add_argument(
        "--channels-first",
        dest="channels",
        action="store_const",
        const="first",
        help="images are (channels, height, width): turn them into (height, width, channels)",
    )
    order.add_argument(
        "--channels-last",
        dest="channels",
        action="store_const",
        const="last",
        help="images are (height, width, channels), even where it does not seem so",
    )


def source_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `open_source`."""
    return {"label": args.label, "header": args.header, "channels": args.channels}
