"""Measure all-reduce algorithms, the network for 'mpidl plan' (both under mpirun), or a server."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpidl.cli import bench_serve

if TYPE_CHECKING:
    from mpidl.collectives import Group
    from mpidl.comm.context import Context

NAME = "bench"
HELP = "measure collectives, the network (both under mpirun) or a server"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("what", choices=("collectives", "network", "serve"))
    parser.add_argument("--smallest", type=int, default=4, help="bytes (default: %(default)s)")
    parser.add_argument(
        "--largest-mib", type=float, default=256, help="largest message (default: %(default)s)"
    )
    parser.add_argument(
        "--factor", type=int, default=4, help="between successive sizes (default: %(default)s)"
    )
    parser.add_argument(
        "--algorithms", help="names separated by commas (default: auto and all that can run)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=1.0,
        help="measuring time for each size or load (default: %(default)s)",
    )
    parser.add_argument("--plot", type=Path, help="write a plot there (collectives, serve)")
    parser.add_argument("--output", type=Path, help="write the machine description there (network)")
    bench_serve.add_arguments(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure. Collective, but for a server."""
    if args.what == "serve":
        return bench_serve.run(args)
    from mpidl.collectives import get_group
    from mpidl.comm.context import init

    context = init()
    with context.fail_together("measuring"):
        _check(args, context.size)
    group = get_group(context.comm)
    measure = _network if args.what == "network" else _collectives
    return measure(args, context, group)


def _check(args: argparse.Namespace, size: int) -> None:
    from mpidl.errors import ConfigError

    if args.target:
        raise ConfigError(
            f"{args.what} has no {args.target[:100]!r}",
            where="mpidl bench",
            remedy="name a server for 'mpidl bench serve' only",
        )
    if size < 2:
        raise ConfigError(
            "collectives need at least two ranks",
            where="mpidl bench",
            remedy="start it with mpirun -n 2 or more",
        )
    growing = args.factor >= 2 and args.smallest >= 4
    finite = 0 < args.largest_mib < math.inf and 0 < args.seconds < math.inf
    if not growing or not finite:
        raise ConfigError(
            "sizes must grow, and measuring must take some time",
            where="mpidl bench",
            remedy="--factor at least 2, --smallest at least 4, "
            "--largest-mib and --seconds above 0",
        )


def _network(args: argparse.Namespace, context: Context, group: Group) -> dict[str, Any]:
    from mpidl.files import check_folder, write_file
    from mpidl.performance.measure import measure_machine

    if args.output:
        context.on_root(lambda: check_folder(args.output), "checking --output")
    machine = measure_machine(group).to_json()
    text = json.dumps(machine, indent=1)
    if args.output:
        content = f"{text}\n".encode()
        context.on_root(lambda: write_file(args.output, content), f"writing {args.output}")
    if context.is_root and not args.json:
        print(text)
        if group.node_count == 1:
            print(
                "one node only: latency_us and bandwidth_gb_s (between nodes) are defaults, "
                "not measured"
            )
    return machine


def _collectives(args: argparse.Namespace, context: Context, group: Group) -> dict[str, Any]:
    from mpidl.observe.plot import check_plot, plot_collectives
    from mpidl.performance import bench

    if args.plot:
        context.on_root(lambda: check_plot(args.plot), "checking --plot")
    names = args.algorithms.split(",") if args.algorithms else ()
    with context.fail_together("choosing algorithms"):
        bench.check_names(names, "--algorithms")
    results = bench.compare(
        group,
        bench.make_contenders(group, names),
        bench.message_sizes(args.smallest, int(args.largest_mib * (1 << 20)), args.factor),
        seconds=args.seconds,
        say=print if context.is_root and not args.json else lambda line: None,
    )
    if args.plot:
        title = f"all-reduce, {group.size} ranks on {group.node_count} node(s)"
        context.on_root(lambda: plot_collectives(results, args.plot, title), f"writing {args.plot}")
    return {"ranks": group.size, "nodes": group.node_count, "results": results}
