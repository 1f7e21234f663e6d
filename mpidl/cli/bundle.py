"""Write a signed statement of how a model came to be: `mpidl reproduce` trains it again.

It has the configuration, the digests of data, code and results, the environment, and the line of
the audit log; in the form of SLSA provenance v1.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

NAME = "bundle"
HELP = "a signed statement of how a model came to be"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument(
        "model",
        type=Path,
        help="the output folder of a run (its newest checkpoint), or a checkpoint",
    )
    parser.add_argument(
        "--identity",
        metavar="NAME",
        help="who signs: a folder in MPIDL_KEYS, or the PEM file of a private key (default: "
        "security.identity in the file that MPIDL_SECURITY names, else the job, else you)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="to write (default: provenance.json in the run)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Write a bundle."""
    from mpidl.cli.sign import choose_signer
    from mpidl.errors import CheckpointError
    from mpidl.files import write_file
    from mpidl.train.checkpoint import list_checkpoints
    from mpidl.train.provenance import NAME as FILE
    from mpidl.train.provenance import describe, seal

    signer = choose_signer(args.identity)
    path, out = args.model, args.out
    if path.is_dir():
        found = list_checkpoints(path / "checkpoints")
        if not found:
            raise CheckpointError(
                "no checkpoint found",
                where=str(path),
                remedy="name a .h5 checkpoint or the output folder of a run",
            )
        path, out = found[0], out or path / FILE
    provenance = describe(path)
    out = out or path.with_name(f"{path.stem}-{FILE}")
    write_file(out, seal(provenance, signer))
    if not args.json:
        print(f"{path.name} after step {provenance.chosen.step}, signed by {signer.name}: {out}")
    return {"bundle": str(out), "checkpoint": str(path), "step": provenance.chosen.step}
