"""Layers, parameters, floating-point operations and memory of a model; needs no data and no MPI."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpidl.models.summary import Row, Totals

NAME = "summary"
HELP = "layers, parameters, FLOPs and memory of a model"
MIB = 1 << 20
LARGEST = 1 << 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    from mpidl.models import MODELS

    parser.add_argument(
        "model", help=f"the TOML file of a run (its model section), or one of {', '.join(MODELS)}"
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
    """Summarize; needs no MPI launcher."""
    from mpidl.backend.numpy_ops import NumpyOps
    from mpidl.config import read_model
    from mpidl.models.summary import sum_rows, summarize
    from mpidl.train.build import build_model

    shape = _read_shape(args.input)
    for name in ("classes", "batch"):
        _check_count(name, getattr(args, name))
    config = read_model(args.model, args.set)
    rows = list(summarize(build_model(config, shape, args.classes, NumpyOps())))
    totals = sum_rows(rows)
    training = {
        "flops": totals.training_flops(args.batch),
        "memory_mib": totals.memory(args.batch, 1) / MIB,
    }
    if not args.json:
        print_table(rows, totals)
        print(
            f"a training step of {args.batch} samples: {training['flops'] / 1e9:,.1f} GFLOP, "
            f"about {training['memory_mib']:,.0f} MiB "
            "(parameters, gradients, momentum, activations and their gradients)"
        )
    return {"layers": [asdict(row) for row in rows], "totals": asdict(totals), "training": training}


def print_table(rows: Sequence[Row], totals: Totals) -> None:
    """Print a line for each layer, and their sums."""
    print(f"{'layer':<16}{'output':<20}{'parameters':>14}{'MFLOP/sample':>14}{'KiB/sample':>12}")
    for row in rows:
        output = "x".join(map(str, row.output))
        print(f"{row.name:<16}{output:<20}{_figures(row)}")
    print(f"{'total':<36}{_figures(totals)}")


def _figures(row: Row | Totals) -> str:
    return f"{row.parameters:>14,}{row.flops / 1e6:>14,.2f}{row.activation_bytes / 1024:>12,.1f}"


def _read_shape(text: str) -> tuple[int, ...]:
    from mpidl.errors import ConfigError

    try:
        shape = tuple(int(size) for size in text.strip("()").split(",") if size.strip())
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1 or math.prod(shape) > LARGEST:
        raise ConfigError(
            f"{text!r} is not a shape",
            where="--input",
            remedy="write sizes with commas: 28,28,1",
        )
    return shape


def _check_count(name: str, value: int) -> None:
    from mpidl.errors import ConfigError

    if not 1 <= value <= LARGEST:
        raise ConfigError(
            f"is {value}, but must be a positive number",
            where=f"--{name}",
            remedy=f"choose another --{name}",
        )
