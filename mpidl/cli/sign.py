"""Sign a data set, a checkpoint, a run or an exported model.

The signature is an OpenSSF model-signing bundle: `model_signing verify key` accepts it too. It lies
in a folder as model.sig, and beside a file with .sig behind its name.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpidl.security.signer import Signer

NAME = "sign"
HELP = "sign a data set, a checkpoint or an exported model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("path", type=Path, help="the file or the folder")
    parser.add_argument(
        "--identity",
        metavar="NAME",
        help="who signs: a folder in MPIDL_KEYS, or the PEM file of a private key (default: "
        "security.identity in the file that MPIDL_SECURITY names, else the job, else you)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the signature there")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Sign."""
    signer = choose_signer(args.identity)
    from mpidl.security.signing import sign

    written = sign(args.path, signer, args.out)
    if not args.json:
        print(f"signed by {signer.name}: {written}")
    return {"signature": str(written), "identity": signer.name}


def choose_signer(given: str | None) -> Signer:
    """Who signs: the option's identity, else that of the settings, the job, or the user."""
    from mpidl.extras import load_extra
    from mpidl.security.section import site_security

    load_extra("cryptography", "signing")
    from mpidl.security.signer import load_signer

    return load_signer(given or site_security().identity)
