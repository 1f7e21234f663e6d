"""Decrypt sealed files, for the user alone (mode 600); or only check that they are intact."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

NAME = "unseal"
HELP = "decrypt sealed files, or check them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("paths", type=Path, nargs="+", help="sealed files, or folders of them")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--out", type=Path, help="folder of the plain files; not on storage that others read"
    )
    what.add_argument(
        "--check", action="store_true", help="write nothing, authenticate every segment"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Unseal. Collective: the ranks divide the files."""
    from mpidl.cli.sealed_paths import each_file
    from mpidl.security.sealed_file import is_sealed
    from mpidl.security.sealing import check_file, unseal_file

    def unseal(path: Path, target: Path) -> bool:
        if not is_sealed(path):
            return False
        if args.check:
            check_file(path)
        else:
            unseal_file(path, target)
        return True

    doing = "checking" if args.check else "unsealing"
    done = each_file(doing, args.paths, args.out, unseal, quiet=args.json)
    opened = [str(path) for path, sealed in done if sealed]
    return {"checked" if args.check else "unsealed": opened, "not_sealed": len(done) - len(opened)}
