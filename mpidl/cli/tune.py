"""Measure which all-reduce algorithm is fastest at each size, for 'auto' to use from now on."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

NAME = "tune"
HELP = "measure this machine for the automatic choice of algorithms (run it under mpirun)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument(
        "--output", type=Path, help="the table (default: MPIDL_TUNE, or ~/.config/mpidl/tune.json)"
    )
    parser.add_argument(
        "--largest-mib", type=float, default=64, help="largest message (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure. Collective."""
    from mpidl.collectives import get_group
    from mpidl.collectives.engine.select import layout_key, table_path
    from mpidl.comm.context import init
    from mpidl.performance import tune

    context = init()
    with context.fail_together("tuning"):
        _check(args, context.size)
    group = get_group(context.comm)
    path = args.output or table_path()
    rows = tune.measure_sizes(group, int(args.largest_mib * (1 << 20)))
    table = tune.fastest_by_size(rows)
    layout = layout_key(group.nodes)
    machine = {"ranks": group.size, "nodes": group.node_count}
    context.on_root(lambda: tune.save_table(path, layout, table, machine), f"writing {path}")
    if context.is_root and not args.json:
        for nbytes, times in rows:
            ranking = sorted(times, key=times.__getitem__)
            print(f"{nbytes:>12} B ", *(f" {name} {1e6 * times[name]:.1f} us" for name in ranking))
        choices = ", ".join(f"{name} from {nbytes} B" for nbytes, name in table)
        print(f"{layout} (ranks x nodes): {choices}; written to {path}")
    return {"layout": layout, "table": table, "path": str(path)}


def _check(args: argparse.Namespace, size: int) -> None:
    from mpidl.errors import ConfigError

    if size < 2:
        raise ConfigError(
            "collectives need at least two ranks",
            where="mpidl tune",
            remedy="start it with mpirun -n 2 or more",
        )
    if not 0 < args.largest_mib < math.inf:
        raise ConfigError(
            f"cannot use {args.largest_mib}",
            where="--largest-mib",
            remedy="give a positive number",
        )
