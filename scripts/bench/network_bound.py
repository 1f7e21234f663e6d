"""What a slow network costs, compared with the cost model, and what compression saves.

scripts/netns/cluster.sh up && scripts/netns/cluster.sh run 4 python scripts/bench/network_bound.py

Prints the machine as measured by exchanges of messages, the ring all-reduce compared with its
prediction, and compressed exchanges compared with the uncompressed one (with error feedback, all
work included); interleaved, medians of the slowest rank.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial

import numpy as np

import mpidl  # noqa: F401  (MPI before anything else)
from mpidl.collectives import Group, all_reduce
from mpidl.collectives.algorithms.ring import ring
from mpidl.comm.context import init
from mpidl.compression import create
from mpidl.performance.cost import predict
from mpidl.performance.measure import measure_machine, time_interleaved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=float, default=16, help="gradients (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    context = init()
    group = Group(context.comm, name="bench")
    machine = measure_machine(group)
    length = int(args.mib * (1 << 18))
    gradient = np.random.default_rng(context.rank).standard_normal(length).astype(np.float32)
    buffer = gradient.copy()

    def fresh(reduce: Callable[..., None], *rest: object, **options: object) -> None:
        """Every call starts from the same gradient."""
        np.copyto(buffer, gradient)
        reduce(buffer, *rest, **options)

    calls: dict[str, Callable[[], None]] = {
        "fp32 ring": partial(fresh, all_reduce, comm=group, algorithm="ring")
    }
    for name in ("fp16", "int8", "sign", "topk", "powersgd"):
        compressor = create(name, ratio=0.01) if name == "topk" else create(name)
        calls[name] = partial(fresh, compressor.reduce, group, "bucket 0")
    taken = time_interleaved(calls, group, seconds=0, min_rounds=args.repeats)
    predicted = predict(ring, length, group.size, machine)
    result = {
        "ranks": group.size,
        "hosts": group.node_count,
        "mib": args.mib,
        "machine": machine.to_json(),
        "ring_s": taken["fp32 ring"],
        "predicted_ring_s": predicted,
        "ring_over_predicted": taken["fp32 ring"] / predicted,
        "times_faster": {name: taken["fp32 ring"] / value for name, value in taken.items()},
    }
    if context.is_root:
        print(json.dumps(result, indent=None if args.json else 1))


if __name__ == "__main__":
    main()
