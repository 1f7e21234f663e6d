"""Verify that a data set, a checkpoint or a model is, byte for byte, what somebody has signed.

It accepts the OpenSSF model-signing bundles of other programs too.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

NAME = "verify"
HELP = "verify the signature of a data set, a checkpoint or a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("path", type=Path, help="the file or the folder")
    add_trusted(parser)
    parser.add_argument("--signature", type=Path, metavar="FILE", help="where it lies")


def add_trusted(parser: argparse.ArgumentParser) -> None:
    """The option --trusted."""
    parser.add_argument(
        "--trusted",
        action="append",
        default=[],
        metavar="FILE",
        help="'site', for all in the site who may sign, or a PEM file of a public key, another "
        "root certificate or its revocation list; may be given several times (default: "
        "security.trusted in the file that MPIDL_SECURITY names, else 'site')",
    )


def load_trusted(given: list[str]) -> Any:
    """Whom a command believes: the option's files, else those of the settings, else the site.

    Raises:
        ConfigError: Nobody.
    """
    from mpidl.errors import ConfigError
    from mpidl.extras import load_extra
    from mpidl.security.section import site_security

    load_extra("cryptography", "verifying signatures")
    from mpidl.security.keystore import site_folder
    from mpidl.security.trusted import SITE, Trusted

    files = given or site_security().trusted
    if not files and (site_folder() / "root.pem").is_file():
        files = (SITE,)
    if not files:
        raise ConfigError(
            "nobody is named who is trusted",
            where="--trusted",
            remedy="add --trusted FILE, the signer's public key or root certificate",
        )
    return Trusted.load(files)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Verify."""
    trusted = load_trusted(args.trusted)
    from mpidl.security.signing import verify

    found = verify(args.path, trusted, args.signature)
    files = len(found.statement.predicate.resources)
    if not args.json:
        print(f"intact: {args.path}, {files} file(s), signed by {found.signatory.name}")
    return {
        "path": str(args.path),
        "signatory": found.signatory.name,
        "fingerprint": found.signatory.fingerprint,
        "files": files,
        "digest": found.statement.subject[0].digest["sha256"],
    }
