"""All-reduces of many small arrays, one by one, asynchronously and grouped.

    mpirun -n 2 python scripts/bench/asynchronous.py

Prints the median over interleaved runs, of the slowest rank, and the ratio of asynchronous to
synchronous times.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import numpy as np

import mpidl.distributed as dist
from mpidl.collectives import get_group
from mpidl.comm.context import init
from mpidl.performance.measure import time_interleaved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arrays", type=int, default=300)
    parser.add_argument("--bytes", type=int, default=1024, help="of each array")
    parser.add_argument("--seconds", type=float, default=2.0)
    args = parser.parse_args()
    dist.init()
    arrays = [np.zeros(args.bytes // 4, np.float32) for _ in range(args.arrays)]

    def synchronous() -> None:
        for array in arrays:
            dist.all_reduce(array)

    def asynchronous() -> None:
        for handle in [dist.all_reduce(array, async_op=True) for array in arrays]:
            handle.wait()

    def grouped() -> None:
        dist.grouped_all_reduce(arrays)

    contenders: dict[str, Callable[[], None]] = {
        "synchronous": synchronous,
        "asynchronous": asynchronous,
        "grouped": grouped,
    }
    taken = time_interleaved(contenders, get_group(init().comm), seconds=args.seconds, least=15)
    if dist.rank() == 0:
        row = {f"{name}_us": round(1e6 * seconds, 1) for name, seconds in taken.items()}
        print(
            json.dumps({"ranks": dist.size(), "arrays": args.arrays, "bytes": args.bytes} | row),
            flush=True,
        )
        print(f"asynchronous / synchronous: {taken['asynchronous'] / taken['synchronous']:.2f}")


if __name__ == "__main__":
    main()
