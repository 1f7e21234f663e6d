"""Predict step time and weak-scaling efficiency for a model on a described machine, before anybody gets the allocation."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

NAME = "plan"
HELP = "predicted step time and efficiency at up to thousands of ranks"
MIB = 1 << 20
LARGEST = 1 << 20  # ranks
ONE_RANK_A_NODE = (
    "nothing says how many ranks a node has: one is assumed, so that every message crosses the network and no link is "
    "shared; give --ranks-per-node, or --machine with what 'mpidl bench network --output FILE' measured"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument(
        "--ranks",
        default="2..4096",
        help="a number, or FIRST..LAST in doublings (default: %(default)s)",
    )
    parser.add_argument(
        "--machine",
        type=Path,
        help="what 'mpidl bench network --output' wrote (default: 100 Gbit/s, 5 us)",
    )
    parser.add_argument(
        "--gradient-mb",
        type=float,
        default=102.0,
        help="gradients, 10^6 bytes (default: ResNet-50's %(default)s)",
    )
    parser.add_argument(
        "--compute-ms",
        type=float,
        default=250.0,
        help="forward and backward of one rank, measured (default: %(default)s)",
    )
    parser.add_argument(
        "--bucket-mib", type=float, default=25.0, help="size of a bucket (default: %(default)s)"
    )
    parser.add_argument("--no-overlap", action="store_true", help="exchange only after backward")
    parser.add_argument("--ranks-per-node", type=int, help="overrides the machine's")
    parser.add_argument("--latency-us", type=float, help="overrides the machine's, between nodes")
    parser.add_argument(
        "--bandwidth-gbit", type=float, help="overrides the machine's, of a node's link"
    )
    parser.add_argument("--plot", type=Path, help="write a plot there (.png, .pdf, .svg)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Needs no MPI launcher."""
    from mpidl.errors import ConfigError, notice
    from mpidl.observe.plot import check_plot, plot_plan
    from mpidl.performance.step import plan_step, rank_counts

    machine, notes = read_machine(args)
    first, _, last = args.ranks.partition("..")
    if (
        not first.isdigit()
        or not (last or first).isdigit()
        or not 1 <= int(first) <= int(last or first) <= LARGEST
    ):
        remedy = f"write 64, or 2..4096; at most {LARGEST:,}"
        raise ConfigError(f"cannot understand {args.ranks!r}", where="--ranks", remedy=remedy)
    for name in ("gradient_mb", "compute_ms", "bucket_mib"):
        if not 0 < getattr(args, name) < math.inf:
            where = "--" + name.replace("_", "-")
            raise ConfigError(
                f"cannot use {getattr(args, name)}", where=where, remedy="give a positive number"
            )
    if args.plot:
        check_plot(args.plot)
    steps = [
        plan_step(
            machine,
            size,
            gradient_bytes=int(args.gradient_mb * 1e6),
            compute=args.compute_ms / 1e3,
            bucket_bytes=int(args.bucket_mib * MIB),
            overlap=not args.no_overlap,
        )
        for size in rank_counts(int(first), int(last or first))
    ]
    if not args.json:
        show(machine, args, steps)
    for note in notes:
        notice(note)
    if args.plot:
        plot_plan(
            steps,
            args.plot,
            f"{args.gradient_mb:g} MB of gradients, {args.compute_ms:g} ms of compute a step",
        )
    return {"machine": machine.to_json(), "steps": [asdict(step) for step in steps], "notes": notes}


def read_machine(args: argparse.Namespace) -> tuple[Any, list[str]]:
    """The machine file with the command line's changes; and what had to be assumed, for people."""
    from mpidl.errors import ConfigError
    from mpidl.performance.machine import Machine

    known = {field.name for field in fields(Machine)}
    try:
        held = json.loads(args.machine.read_text()) if args.machine else {}
        if unknown := set(held) - known:
            raise ValueError(f"unknown key {sorted(unknown)[0]!r}")
        changes = {"ranks_per_node": args.ranks_per_node, "latency_us": args.latency_us}
        changes["bandwidth_gb_s"] = (
            args.bandwidth_gbit / 8 if args.bandwidth_gbit is not None else None
        )
        told = held | {key: value for key, value in changes.items() if value is not None}
        if not isinstance(told.get("ranks_per_node", 1), int):
            raise ValueError("ranks_per_node must be a whole number")
        return Machine(**told), [] if "ranks_per_node" in told else [ONE_RANK_A_NODE]
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"cannot be used: {error}",
            where=str(args.machine),
            remedy="make it with 'mpidl bench network --output FILE'",
        ) from error


def show(machine: Any, args: argparse.Namespace, steps: list[Any]) -> None:
    """The table, which algorithm wins where, and the working for the largest run."""
    link = f"{8 * machine.bandwidth_gb_s:g} Gbit/s and {machine.latency_us:g} us between nodes"
    print(
        f"machine: {machine.ranks_per_node} rank(s) a node, {link}, reducing {machine.reduce_gb_s:g} GB/s"
    )
    print(
        f"{'ranks':>6} {'nodes':>6}  {'algorithm':<12} {'exchange':>10} {'exposed':>10} {'step':>10} {'efficiency':>10}"
    )
    for step in steps:
        times = " ".join(
            f"{1e3 * value:>7.2f} ms" for value in (step.communication, step.exposed, step.seconds)
        )
        print(
            f"{step.ranks:>6} {step.nodes:>6}  {step.algorithm:<12} {times} {100 * step.efficiency:>9.1f}%"
        )
    names = sorted({name for step in steps for name in step.algorithms})
    print(
        f"\nseconds of one bucket's exchange, in ms; * wins\n{'ranks':>6} "
        + " ".join(f"{name:>14}" for name in names)
    )
    for step in steps:
        cells = (
            f"{1e3 * step.algorithms[n]:>12.3f} {'*' if n == step.algorithm else ' '}"
            if n in step.algorithms
            else ""
            for n in names
        )
        print(f"{step.ranks:>6} " + " ".join(f"{cell:>14}" for cell in cells))
    working(args, steps[-1])


def working(args: argparse.Namespace, step: Any) -> None:
    """How the last row came about."""
    forward, backward = args.compute_ms / 3, args.compute_ms * 2 / 3
    hidden = (
        "after backward"
        if args.no_overlap
        else f"when ready, every {backward / step.buckets:.2f} ms of backward"
    )
    print(
        f"\nworking, {step.ranks} ranks: forward {forward:.1f} ms + backward {backward:.1f} ms; {step.buckets} bucket(s) of "
        f"{step.bucket_bytes / 1e6:.1f} MB leave {hidden};\n  each takes {1e3 * step.bucket_seconds:.2f} ms "
        f"({step.algorithm}), one after another: {1e3 * step.communication:.2f} ms, of which {1e3 * step.exposed:.2f} ms are "
        f"left after backward;\n  step {1e3 * step.seconds:.2f} ms, efficiency "
        f"{args.compute_ms:g} / {1e3 * step.seconds:.2f} = {100 * step.efficiency:.1f} %"
    )
