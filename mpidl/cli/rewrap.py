"""Change who can open sealed files, without a touch of their data.

Who could open a file may have kept its data key: to shut somebody out of a copy, too, add
--new-key, which encrypts the data anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

NAME = "rewrap"
HELP = "change who can open sealed files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("paths", type=Path, nargs="+", help="sealed files, or folders of them")
    parser.add_argument(
        "--add",
        action="append",
        default=[],
        metavar="RECIPIENT",
        help="an identity of MPIDL_KEYS, or the path of a sealing certificate",
    )
    parser.add_argument(
        "--remove", action="append", default=[], metavar="NAME", help="a recipient, by name"
    )
    parser.add_argument(
        "--new-key", action="store_true", help="encrypt the data anew, under another data key"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Re-wrap. Collective: the ranks divide the files."""
    from mpidl.cli.sealed_paths import each_file
    from mpidl.errors import ConfigError, notice
    from mpidl.security.sealed_file import is_sealed
    from mpidl.security.sealing import renew, rewrap

    if not (args.add or args.remove or args.new_key):
        raise ConfigError("nothing is to be changed", remedy="give --add, --remove or --new-key")
    change = renew if args.new_key else rewrap

    def one(path: Path, target: Path) -> tuple[str, ...]:
        return change(path, add=args.add, remove=args.remove) if is_sealed(path) else ()

    done = each_file("re-wrapping", args.paths, None, one, quiet=args.json)
    if args.remove and not args.new_key:
        notice(
            f"{', '.join(args.remove)} may have kept the data key or a copy: what is written from "
            "now on is safe from them, what they could read is not; see --new-key"
        )
    found = {str(path): list(names) for path, names in done if isinstance(names, tuple) and names}
    return {"recipients": found}
