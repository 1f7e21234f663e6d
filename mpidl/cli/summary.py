"""Layers, parameters, floating-point operations and memory of a model, without data and without MPI."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict
from typing import Any

NAME = "summary"
HELP = "layers, parameters, FLOPs and memory of a model"
MIB = 1 << 20
LARGEST = 1 << 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument(
        "model", help="a name such as resnet18, or the TOML file of a run (its model section)"
    )
    parser.add_argument(
        "--input",
        required=True,
        metavar="SHAPE",
        help="shape of one sample: 28,28,1 or, for tokens, 128",
    )
    parser.add_argument(
        "--classes",
        type=int,
        default=10,
        help="classes, output fields or vocabulary (default: %(default)s)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=32,
        help="samples a rank, for memory and FLOPs (default: %(default)s)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="an option of the model, as in size=tiny",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Needs no MPI launcher."""
    from mpidl.backend.numpy_ops import NumpyOps
    from mpidl.config import read_model
    from mpidl.errors import ConfigError
    from mpidl.models.summary import sum_rows, summarize
    from mpidl.train.build import build_model

    try:
        shape = tuple(int(extent) for extent in args.input.strip("()").split(",") if extent.strip())
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1 or math.prod(shape) > LARGEST:
        raise ConfigError(
            f"cannot understand {args.input!r}",
            where="--input",
            remedy="write extents with commas: 28,28,1",
        )
    for name in ("classes", "batch"):
        if not 1 <= getattr(args, name) <= LARGEST:
            raise ConfigError(
                f"cannot use {getattr(args, name)}",
                where=f"--{name}",
                remedy="give a positive number",
            )
    config = read_model(args.model, args.set)
    rows = list(summarize(build_model(config, shape, args.classes, NumpyOps())))
    totals = sum_rows(rows)
    training = {
        "flops": totals.training_flops(args.batch),
        "memory_mib": totals.memory(args.batch, 1) / MIB,
    }
    if not args.json:
        print(
            f"{'layer':<16}{'output':<20}{'parameters':>14}{'MFLOP/sample':>14}{'KiB/sample':>12}"
        )
        for row in rows:
            size = f"{row.parameters:>14,}{row.flops / 1e6:>14,.2f}{row.activation_bytes / 1024:>12,.1f}"
            print(f"{row.name:<16}{'x'.join(map(str, row.output)):<20}{size}")
        print(
            f"{'total':<36}{totals.parameters:>14,}{totals.flops / 1e6:>14,.2f}{totals.activation_bytes / 1024:>12,.1f}"
        )
        print(
            f"a training step of {args.batch} samples: {training['flops'] / 1e9:,.1f} GFLOP, "
            f"about {training['memory_mib']:,.0f} MiB "
            "(parameters, gradients, momentum, activations and their gradients)"
        )
    return {"layers": [asdict(row) for row in rows], "totals": asdict(totals), "training": training}
