"""The loader compared with plain h5py reads of the same bytes: python scripts/bench/loader.py

Contenders, alternating in one run, medians over rounds; in each round all samples are read once,
and all but "ours kept" open their files again:
  ours          Loader over a sharded data set, shuffled, batches of --batch (what training uses)
  ours kept     the same, one Loader over all rounds: later epochs find their part in memory
  ours windows  the same, read again in every epoch through two windows of 8 MiB, as data larger
                than memory are
  h5py          each shard in contiguous slices of --batch, in order
  h5py bulk     each shard with one contiguous read: the upper limit, no batches at all
Files are in the page cache for all. Checksums are verified once when a run starts, not here.

With --step-ms T: accelerator utilization as MLPerf Storage defines it, compute time / total time. A
fake accelerator takes T ms for each batch (it sleeps, and how long is measured), and asks for the
next one. Also under mpirun: each rank has its own fake accelerator and --batch samples of the
global batch, and all ranks meet after every step, as synchronous training does:
  mpirun -n 2 python scripts/bench/loader.py --step-ms 5
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mpidl.comm.context import Context, init
from mpidl.data import LaneSampler, Loader, Reader
from mpidl.data.formats.source import Source
from mpidl.data.hdf5 import h5py
from mpidl.data.manifest import load_manifest
from mpidl.data.sampler import window_steps
from mpidl.data.writer import WriteOptions, write_dataset


def shapes(samples: int) -> list[tuple[str, tuple[int, ...], int]]:
    """The data sets: name, shape and number of samples."""
    return [
        ("28x28 bytes", (28, 28), samples),
        ("64x64x3 bytes", (64, 64, 3), samples // 10),
    ]


def make(
    folder: Path, samples: int, shape: tuple[int, ...], context: Context | None = None
) -> Path:
    """A sharded data set of random bytes, and the same samples in contiguous files. Collective."""
    context = context or init()
    rng = np.random.default_rng(0)
    image, label = (
        rng.integers(0, 256, (samples, *shape), dtype=np.uint8),
        rng.integers(0, 10, samples),
    )
    source = Source(samples, lambda low, high: {"image": image[low:high], "label": label[low:high]})
    folder.mkdir(parents=True, exist_ok=True)
    write_dataset(source, folder / "set", WriteOptions(4), context, lambda count: None)
    for number in range(4) if context.is_root else ():
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--step-ms", type=float, default=0.0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.step_ms:
        utilization(args)
        return
    results = {}
    with tempfile.TemporaryDirectory() as name:
        for label, shape, samples in shapes(args.samples):
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
    depth = window_steps(manifest.samples, batch, manifest.sample_bytes, 16 << 20)
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


def utilization(args: argparse.Namespace) -> None:
    """Print the accelerator utilization of the slowest rank."""
    context = init()
    results: dict[str, dict[str, float]] = {}
    for label, shape, samples in shapes(args.samples):
        folder = context.on_root(lambda: tempfile.mkdtemp(), "making a folder")
        make(Path(folder), samples, shape, context)
        manifest = load_manifest(Path(folder) / "set")
        depth = window_steps(
            manifest.samples, args.batch * context.size, manifest.sample_bytes, 16 << 20
        )
        results[label] = {
            f"{name}, epoch {epoch}": value
            for name, window in (("kept", None), ("windows", depth))
            for epoch, value in enumerate(run_steps(Path(folder), args, window, context))
        }
        context.barrier()
        if context.is_root:
            shutil.rmtree(folder)
    if not context.is_root:
        return
    if args.json:
        print(json.dumps(results))
        return
    for label, row in results.items():
        print(f"{label}, batch {args.batch}, {args.step_ms} ms a step, {context.size} rank(s):")
        for name, value in row.items():
            print(f"  {name:<20} {100 * value:6.1f} %")


def run_steps(
    folder: Path, args: argparse.Namespace, window: int | None, context: Context
) -> list[float]:
    """Compute time / total time in each of two epochs, of the slowest rank."""
    reader = Reader(folder / "set", context=context, verify=False)
    batch = args.batch * context.size
    sampler = LaneSampler(len(reader), batch, context.rank, context.size, window=window)
    loader = Loader(reader, sampler, context=context)
    found = []
    for epoch in range(2):
        context.barrier()
        begin, computed = time.perf_counter(), 0.0
        for _ in loader.epoch(epoch):
            start = time.perf_counter()
            time.sleep(args.step_ms / 1000)
            computed += time.perf_counter() - start
            context.barrier()
        total = time.perf_counter() - begin
        found.append(min(context.allgather_object(computed / total)))
    loader.close()
    reader.close()
    return found


if __name__ == "__main__":
    main()
