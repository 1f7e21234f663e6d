"""All-reduce compared with the MPI library and with PyTorch's gloo, interleaved in one run.

mpirun -n 2 python scripts/bench/collectives.py --plot all-reduce.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mpidl  # noqa: F401  (MPI before anything else)
from mpidl.collectives import get_group
from mpidl.comm.context import init
from mpidl.observe.plot import plot_collectives
from mpidl.performance import bench


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest-mib", type=float, default=256)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each size")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    context = init()
    group = get_group(context.comm)
    from peers import gloo

    gloo.connect(group)
    rows = bench.compare(
        group,
        bench.make_contenders(group) | {"gloo": gloo.all_reduce},
        bench.message_sizes(4, int(args.largest_mib * (1 << 20)), 4),
        seconds=args.seconds,
        say=print if context.is_root else lambda line: None,
    )
    if args.plot and context.is_root:
        args.plot.parent.mkdir(parents=True, exist_ok=True)
        plot_collectives(rows, args.plot, f"all-reduce, {group.size} ranks")


if __name__ == "__main__":
    main()
