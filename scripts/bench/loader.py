"""The loader compared with plain h5py reads of the same bytes: python scripts/bench/loader.py

Contenders, alternating in one run, medians over rounds; in each round all samples are read once,
and all but "ours kept" open their files again:
  ours          Loader over a sharded data set, shuffled, batches of --batch (what training uses)
  ours kept     the same, one Loader over all rounds: later epochs find their part in memory
  ours windows  the same, read again in every epoch through windows of 8 MiB, as data larger than
                memory are
  h5py          each shard in contiguous slices of --batch, in order
  h5py bulk     each shard with one contiguous read: the upper limit, no batches at all
Files are in the page cache for all. Checksums are verified once when a run starts, not here.

Accelerator utilization, `--step-ms 5`: a step sleeps for that time, as a rank does that waits for
its accelerator, for --steps batches, as MLPerf Storage measures it
(https://mlcommons.org/benchmarks/storage): time of all steps / time in all, the first epoch
included. Several ranks, with a barrier after each step as an all-reduce is one (mpirun -n 4 python
scripts/bench/loader.py --step-ms 5); the slowest rank counts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mpidl.comm.context import init
from mpidl.data import LaneSampler, Loader, Reader
from mpidl.data.formats.source import Source
from mpidl.data.hdf5 import h5py
from mpidl.data.manifest import load_manifest
from mpidl.data.sampler import window_steps
from mpidl.data.writer import WriteOptions, write_dataset


def make(folder: Path, samples: int, shape: tuple[int, ...]) -> Path:
    """A sharded data set of random bytes, and the same samples in contiguous files."""
    rng = np.random.default_rng(0)
    image, label = (
        rng.integers(0, 256, (samples, *shape), dtype=np.uint8),
        rng.integers(0, 10, samples),
    )
    source = Source(samples, lambda low, high: {"image": image[low:high], "label": label[low:high]})
    folder.mkdir(parents=True, exist_ok=True)
    write_dataset(source, folder / "set", WriteOptions(4), init(), lambda count: None)
    context = init()
    for number in range(context.rank, 4, context.size):
        low, high = number * samples // 4, (number + 1) * samples // 4
        with h5py.File(folder / f"plain-{number}.h5", "w") as file:
            file["image"], file["label"] = image[low:high], label[low:high]
    return folder


def ours(folder: Path, batch: int, epoch: int) -> int:
    reader = Reader(folder / "set", verify=False)
    loader = Loader(reader, LaneSampler(len(reader), batch), keep=False)
    count = drain(loader, epoch)
    loader.close()
    reader.close()
    return count


def drain(loader: Loader, epoch: int) -> int:
    return sum(
        item.arrays["image"].nbytes + item.arrays["label"].nbytes for item in loader.epoch(epoch)
    )


def bare(folder: Path, batch: int | None) -> int:
    count = 0
    for number in range(4):
        with h5py.File(folder / f"plain-{number}.h5", "r") as file:
            image, label = file["image"], file["label"]
            step = batch or len(image)
            for low in range(0, len(image), step):
                count += image[low : low + step].nbytes + label[low : low + step].nbytes
    return count


def utilization(folder: Path, batch: int, step_ms: float, steps: int) -> dict[str, float]:
    """Share of the time in which a fake accelerator is at work: the slowest rank's. Collective.

    Args:
        folder: From `make`.
        batch: Samples of a rank in a step.
        step_ms: How long the accelerator takes for them, in milliseconds.
        steps: How many.
    """
    context = init()
    found = {}
    for name, window_bytes in (("kept", 1 << 30), ("windows", 8 << 20)):
        reader = Reader(folder / "set", context=context, driver="posix", verify=False)
        batches, size = batch * context.size, reader.manifest.sample_bytes
        depth = window_steps(len(reader), batches, size, window_bytes * context.size)
        loader = Loader(
            reader, LaneSampler(len(reader), batches, context.rank, context.size, window=depth)
        )
        context.comm.Barrier()
        begin, done, working = time.perf_counter(), 0, 0.0
        for epoch in range(steps):
            for item in itertools.islice(loader.epoch(epoch), steps - done):
                started = time.perf_counter()
                if item.count:
                    time.sleep(step_ms / 1e3)
                working += time.perf_counter() - started
                context.comm.Barrier()
                done += 1
            if done == steps:
                break
        share = working / (time.perf_counter() - begin)
        found[name] = min(context.comm.allgather(share))
        loader.close()
        reader.close()
    return found


def measure_utilization(
    args: argparse.Namespace, sets: list[tuple[str, tuple[int, ...], int]]
) -> None:
    """Print the utilization for each kind of samples. Collective."""
    context = init()
    name = tempfile.mkdtemp() if context.rank == 0 else ""
    name = context.comm.bcast(name)
    try:
        for label, shape, samples in sets:
            folder = make(Path(name) / label, samples, shape)
            shares = utilization(folder, args.batch, args.step_ms, args.steps)
            if context.rank == 0:
                listed = ", ".join(f"{key} {100 * share:.1f} %" for key, share in shares.items())
                print(f"{label}, {context.size} rank(s), batch {args.batch}: {listed}")
    finally:
        context.comm.Barrier()
        if context.rank == 0:
            shutil.rmtree(name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--step-ms", type=float, help="measure utilization with steps this long")
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    sets: list[tuple[str, tuple[int, ...], int]] = [
        ("28x28 bytes", (28, 28), args.samples),
        ("64x64x3 bytes", (64, 64, 3), args.samples // 10),
    ]
    if args.step_ms is not None:
        measure_utilization(args, sets)
        return
    results = {}
    with tempfile.TemporaryDirectory() as name:
        for label, shape, samples in sets:
            folder = make(Path(name) / label, samples, shape)
            results[label] = measure(folder, args.batch, args.rounds)
    if args.json:
        print(json.dumps(results))
        return
    for label, row in results.items():
        print(f"{label}, batch {args.batch}:")
        for contender, rate in row["mb_s"].items():
            print(f"  {contender:<12} {rate:8.0f} MB/s")
        for pair, ratio in row["ratios"].items():
            print(f"  {pair:<24} {ratio:5.2f}")


def measure(folder: Path, batch: int, rounds: int) -> dict[str, dict[str, float]]:
    kept = Loader(
        Reader(folder / "set", verify=False),
        LaneSampler(load_manifest(folder / "set").samples, batch),
    )
    manifest = load_manifest(folder / "set")
    depth = window_steps(manifest.samples, batch, manifest.sample_bytes, 8 << 20)
    windows = Loader(
        Reader(folder / "set", verify=False), LaneSampler(manifest.samples, batch, window=depth)
    )
    contenders: dict[str, Callable[[int], int]] = {
        "ours": lambda epoch: ours(folder, batch, epoch),
        "ours kept": lambda epoch: drain(kept, epoch),
        "ours windows": lambda epoch: drain(windows, epoch),
        "h5py": lambda epoch: bare(folder, batch),
        "h5py bulk": lambda epoch: bare(folder, None),
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for epoch in range(-1, rounds):
        for name, read in contenders.items():
            begin = time.perf_counter()
            count = read(max(epoch, 0))
            if epoch >= 0:
                rates[name].append(count / (time.perf_counter() - begin) / 1e6)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {
        f"{mine} / {peer}": statistics.median(
            a / b for a, b in zip(rates[mine], rates[peer], strict=True)
        )
        for mine in ("ours", "ours kept", "ours windows")
        for peer in ("h5py", "h5py bulk")
    }
    return {"mb_s": medians, "ratios": ratios}


if __name__ == "__main__":
    main()
