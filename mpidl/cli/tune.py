"""Measure which all-reduce algorithm is fastest on these ranks at each message size, for 'auto' to use from now on."""

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
    """Measure; all ranks call it together."""
    from mpidl.collectives import group_of
    from mpidl.comm.context import init
    from mpidl.errors import ConfigError
    from mpidl.performance import tune

    context = init()
    with context.fail_together("tuning"):
        if context.size < 2:
            raise ConfigError(
                "one rank has nobody to talk to",
                where="mpidl tune",
                remedy="start it with mpirun -n 2 or more",
            )
        if not 0 < args.largest_mib < math.inf:
            raise ConfigError(
                f"cannot use {args.largest_mib}",
                where="--largest-mib",
                remedy="give a positive number",
            )
    group, path = group_of(context.comm), args.output or tune.table_path()
    rows = tune.measure_sizes(group, int(args.largest_mib * (1 << 20)))
    table = tune.table_of(rows)
    layout = tune.layout_key(group.nodes)
    context.on_root(
        lambda: tune.save(path, layout, table, {"ranks": group.size, "nodes": group.node_count}),
        f"writing {path}",
    )
    if context.is_root and not args.json:
        for nbytes, taken in rows:
            print(
                f"{nbytes:>12} B  "
                + "  ".join(
                    f"{name} {1e6 * taken[name]:.1f} us"
                    for name in sorted(taken, key=taken.__getitem__)
                )
            )
        print(
            f"{layout} (ranks x nodes): "
            + ", ".join(f"{name} from {nbytes} B" for nbytes, name in table)
            + f"; written to {path}"
        )
    return {"layout": layout, "table": table, "path": str(path)}
