"""Encrypt files for recipients: data sets, checkpoints, or any file.

Each file is replaced by its sealed form, which all commands read as before. A data set keeps its
manifest's digests: they are of the content.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

NAME = "seal"
HELP = "encrypt data sets, checkpoints or files for recipients"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument(
        "paths", type=Path, nargs="+", help="files; or folders, of which all files are sealed"
    )
    parser.add_argument(
        "--for",
        dest="recipients",
        action="append",
        required=True,
        metavar="RECIPIENT",
        help="an identity of MPIDL_KEYS, or the path of a sealing certificate; may be given "
        "several times",
    )
    parser.add_argument(
        "--out", type=Path, help="folder of the sealed files (default: they replace the others)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Seal. Collective: the ranks divide the files."""
    from mpidl.cli.sealed_paths import each_file
    from mpidl.security.sealed_file import is_sealed
    from mpidl.security.sealing import seal_file
    from mpidl.security.sealing_keys import envelope_for

    envelope = envelope_for(args.recipients)

    def seal(path: Path, target: Path) -> bool:
        if is_sealed(path) and path == target:
            return False
        seal_file(path, target, envelope)
        return True

    done = each_file("sealing", args.paths, args.out, seal, quiet=args.json)
    sealed = [str(path) for path, changed in done if changed]
    return {"sealed": sealed, "unchanged": len(done) - len(sealed)}
