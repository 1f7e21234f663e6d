"""Measure collectives beside MPI's own and PyTorch's gloo, or the network for 'mpidl plan' (run it under mpirun)."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

NAME = "bench"
HELP = "measure collectives or the network (run it under mpirun)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("what", choices=("collectives", "network"))
    parser.add_argument("--smallest", type=int, default=4, help="bytes (default: %(default)s)")
    parser.add_argument(
        "--largest-mib", type=float, default=256, help="largest message (default: %(default)s)"
    )
    parser.add_argument(
        "--factor", type=int, default=4, help="between one size and the next (default: %(default)s)"
    )
    parser.add_argument(
        "--algorithms", help="names separated by commas (default: auto and all that can run)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=1.0,
        help="measuring time for each size (default: %(default)s)",
    )
    parser.add_argument("--plot", type=Path, help="write a plot there (collectives)")
    parser.add_argument("--output", type=Path, help="write the machine description there (network)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; all ranks call it together."""
    from mpidl.collectives import group_of
    from mpidl.comm.context import init
    from mpidl.errors import ConfigError

    context = init()
    with context.fail_together("measuring"):
        if context.size < 2:
            raise ConfigError(
                "one rank has nobody to talk to",
                where="mpidl bench",
                remedy="start it with mpirun -n 2 or more",
            )
        if (
            args.factor < 2
            or args.smallest < 4
            or not 0 < args.largest_mib < math.inf
            or not 0 < args.seconds < math.inf
        ):
            remedy = (
                "--factor at least 2, --smallest at least 4, --largest-mib and --seconds above 0"
            )
            raise ConfigError(
                "sizes must grow, and take some time", where="mpidl bench", remedy=remedy
            )
    group = group_of(context.comm)
    return (
        _network(args, context, group)
        if args.what == "network"
        else _collectives(args, context, group)
    )


def _network(args: argparse.Namespace, context: Any, group: Any) -> dict[str, Any]:
    from mpidl.files import check_folder, write_file
    from mpidl.performance.measure import network

    if args.output:
        context.on_root(lambda: check_folder(args.output), "checking --output")

    machine = network(group).to_json()
    text = json.dumps(machine, indent=1)
    if args.output:
        context.on_root(
            lambda: write_file(args.output, f"{text}\n".encode()), f"writing {args.output}"
        )
    if context.is_root and not args.json:
        print(text)
        if group.node_count == 1:
            print(
                "one node only: latency_us and bandwidth_gb_s (between nodes) are defaults, not measured"
            )
    return machine


def _collectives(args: argparse.Namespace, context: Any, group: Any) -> dict[str, Any]:
    from mpidl.observe.plot import check_plot, plot_collectives
    from mpidl.performance import bench

    if args.plot:
        context.on_root(lambda: check_plot(args.plot), "checking --plot")
    names = args.algorithms.split(",") if args.algorithms else None
    with context.fail_together("choosing algorithms"):
        bench.check(names)
    results = []
    say = print if context.is_root and not args.json else lambda *text: None
    contenders = bench.contenders(group, names)
    say(
        f"all-reduce, float32, {group.size} ranks on {group.node_count} node(s): median us of the slowest rank"
    )
    say(
        f"{'bytes':>10} "
        + " ".join(f"{name:>13}" for name in contenders)
        + "   best GB/s (algorithm, bus)"
    )
    for nbytes in bench.sizes(args.smallest, int(args.largest_mib * (1 << 20)), args.factor):
        rows = bench.measure(group, contenders, nbytes, args.seconds)
        results += rows
        best = min(rows, key=lambda row: row["median_us"])
        say(f"{nbytes:>10} " + " ".join(f"{row['median_us']:>13.1f}" for row in rows)
            + f"   {best['algorithm_gb_s']:.3f}, {best['bus_gb_s']:.3f} ({best['algorithm']})")  # fmt: skip
    if args.plot:
        title = f"all-reduce, {group.size} ranks on {group.node_count} node(s)"
        context.on_root(lambda: plot_collectives(results, args.plot, title), f"writing {args.plot}")
    return {"ranks": group.size, "nodes": group.node_count, "results": results}
