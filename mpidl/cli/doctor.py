"""Check MPI, HDF5, BLAS, the C kernels and the GPU of this machine, and print remedies."""

from __future__ import annotations

import argparse
from typing import Any

NAME = "doctor"
HELP = "check this machine; print remedies"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Check this machine; runs on login nodes, since MPI is initialized in a child process only."""
    from mpidl.comm import launcher
    from mpidl.doctor.examine import examine

    if launcher.rank() != 0:
        return {}
    findings = examine()
    if not args.json:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            print(f"{finding.state:>7}  {finding.name:<{width}}  {finding.value}")
            if finding.advice:
                print(f"{'':>7}  {'':<{width}}  -> {finding.advice}")
    worst = "problem" if any(finding.state == "problem" for finding in findings) else "ok"
    return {
        "state": worst,
        "findings": [vars(finding) for finding in findings],
        "status": int(worst == "problem"),
    }
