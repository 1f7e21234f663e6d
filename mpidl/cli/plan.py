"""Predict step time and weak-scaling efficiency on a described machine, before the allocation."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpidl.performance.machine import Machine
    from mpidl.performance.step import Step

NAME = "plan"
HELP = "predicted step time and efficiency at up to thousands of ranks"
MIB = 1 << 20
LARGEST = 1 << 20  # ranks
ONE_RANK_PER_NODE = (
    "the ranks per node are not given: one is assumed, so that every message crosses the network "
    "and no link is shared; give --ranks-per-node, or --machine with what "
    "'mpidl bench network --output FILE' measured"
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
    """Predict; needs no MPI launcher."""
    from mpidl.errors import notice
    from mpidl.observe.plot import check_plot, plot_plan
    from mpidl.performance.step import plan_step, rank_counts

    machine, notes = _read_machine(args)
    first, last = _read_ranks(args.ranks)
    _check_positive(args)
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
        for size in rank_counts(first, last)
    ]
    if not args.json:
        _print_plan(machine, args, steps)
    for note in notes:
        notice(note)
    if args.plot:
        title = f"{args.gradient_mb:g} MB of gradients, {args.compute_ms:g} ms of compute a step"
        plot_plan(steps, args.plot, title)
    return {"machine": machine.to_json(), "steps": [asdict(step) for step in steps], "notes": notes}


def _read_ranks(text: str) -> tuple[int, int]:
    """The first and the last number of ranks in "64" or "2..4096"."""
    from mpidl.errors import ConfigError

    first, _, last = text.partition("..")
    last = last or first
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last) <= LARGEST):
        remedy = f"write 64, or 2..4096; at most {LARGEST:,}"
        raise ConfigError(f"cannot understand {text!r}", where="--ranks", remedy=remedy)
    return int(first), int(last)


def _check_positive(args: argparse.Namespace) -> None:
    from mpidl.errors import ConfigError

    for name in ("gradient_mb", "compute_ms", "bucket_mib"):
        value = getattr(args, name)
        if not 0 < value < math.inf:
            where = "--" + name.replace("_", "-")
            raise ConfigError(f"cannot use {value}", where=where, remedy="give a positive number")


def _read_machine(args: argparse.Namespace) -> tuple[Machine, list[str]]:
    """The machine file with the command line's changes, and notes on what was assumed."""
    from mpidl.errors import ConfigError
    from mpidl.performance.machine import Machine

    known = {field.name for field in fields(Machine)}
    gbit = args.bandwidth_gbit
    overrides = {
        "ranks_per_node": args.ranks_per_node,
        "latency_us": args.latency_us,
        "bandwidth_gb_s": gbit / 8 if gbit is not None else None,
    }
    try:
        given = json.loads(args.machine.read_text()) if args.machine else {}
        if unknown := set(given) - known:
            raise ValueError(f"unknown key {sorted(unknown)[0]!r}")
        given |= {key: value for key, value in overrides.items() if value is not None}
        if not isinstance(given.get("ranks_per_node", 1), int):
            raise ValueError("ranks_per_node must be a whole number")
        return Machine(**given), [] if "ranks_per_node" in given else [ONE_RANK_PER_NODE]
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"cannot be used: {error}",
            where=str(args.machine),
            remedy="make it with 'mpidl bench network --output FILE'",
        ) from error


def _print_plan(machine: Machine, args: argparse.Namespace, steps: list[Step]) -> None:
    """The predicted steps, the algorithms compared, and the calculation of the last step."""
    link = f"{8 * machine.bandwidth_gb_s:g} Gbit/s and {machine.latency_us:g} us between nodes"
    reducing = f"reducing {machine.reduce_gb_s:g} GB/s"
    print(f"machine: {machine.ranks_per_node} rank(s) a node, {link}, {reducing}")
    columns = f"{'exchange':>10} {'exposed':>10} {'step':>10} {'efficiency':>10}"
    print(f"{'ranks':>6} {'nodes':>6}  {'algorithm':<12} {columns}")
    for step in steps:
        seconds = (step.communication, step.exposed, step.seconds)
        times = " ".join(f"{1e3 * value:>7.2f} ms" for value in seconds)
        efficiency = f"{100 * step.efficiency:>9.1f}%"
        print(f"{step.ranks:>6} {step.nodes:>6}  {step.algorithm:<12} {times} {efficiency}")
    names = sorted({name for step in steps for name in step.algorithms})
    print("\none bucket's all-reduce in ms; * marks the fastest")
    print(f"{'ranks':>6} " + " ".join(f"{name:>14}" for name in names))
    for step in steps:
        print(f"{step.ranks:>6} " + " ".join(f"{_cell(step, name):>14}" for name in names))
    _print_calculation(args, steps[-1])


def _cell(step: Step, name: str) -> str:
    if name not in step.algorithms:
        return ""
    return f"{1e3 * step.algorithms[name]:>12.3f} {'*' if name == step.algorithm else ' '}"


def _print_calculation(args: argparse.Namespace, step: Step) -> None:
    """How a row of the table is calculated."""
    forward = args.compute_ms / 3
    backward = args.compute_ms * 2 / 3
    start = f"as they are ready, every {backward / step.buckets:.2f} ms of backward"
    start = "after backward" if args.no_overlap else start
    total = 1e3 * step.seconds
    print(
        f"\ncalculation for {step.ranks} ranks: "
        f"forward {forward:.1f} ms + backward {backward:.1f} ms;\n"
        f"  {step.buckets} bucket(s) of {step.bucket_bytes / 1e6:.1f} MB leave {start};\n"
        f"  each takes {1e3 * step.bucket_seconds:.2f} ms ({step.algorithm}), "
        f"all of them {1e3 * step.communication:.2f} ms, "
        f"of which {1e3 * step.exposed:.2f} ms are exposed;\n"
        f"  step {total:.2f} ms, "
        f"efficiency {args.compute_ms:g} / {total:.2f} = {100 * step.efficiency:.1f} %"
    )
