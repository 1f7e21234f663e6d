"""Sealed files compared with plain ones: python scripts/bench/sealing.py

Contenders alternate in one run; medians over rounds, and the sealed speed as a share of the plain
one. Files are in the page cache for both:
  loader ...      Loader over a sharded data set, shuffled, batches of 128, opened anew in each
                  round: small samples (784 bytes) and large ones (147 KiB), at once and through
                  windows of 8 MiB as data larger than memory are
  h5py ...        the same data set by h5py alone, whole and in slices of 32 rows
  verified start  opening a data set with its SHA-256, as a run does once
  checkpoint ...  ckpt.save of parameters and two buffers, forced to disk; ckpt.read of it
  seal, unseal    the commands' copies of the largest shard
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from mpidl.comm.context import init
from mpidl.data import LaneSampler, Loader, Reader
from mpidl.data.formats.source import Source
from mpidl.data.hdf5 import open_file
from mpidl.data.sampler import window_steps
from mpidl.data.writer import WriteOptions, write_dataset
from mpidl.security import sealing, sealing_keys
from mpidl.train import checkpoint as ckpt

WINDOW = 8 << 20  # bytes
BATCH = 128
KINDS = ("plain", "sealed")


def make_identity(folder: Path, name: str) -> None:
    """A key and its certificate, where sealed files look for them."""
    (folder / name).mkdir(parents=True)
    key, issuer = X25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 1)
    builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    pem = serialization.Encoding.PEM
    made = builder.sign(issuer, None).public_bytes(pem)
    (folder / name / "sealing-certificate.pem").write_bytes(made)
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    handle = os.open(folder / name / "sealing.pem", os.O_WRONLY | os.O_CREAT, 0o600)
    with open(handle, "wb") as file:
        file.write(secret)


def make(folder: Path, samples: int, shape: tuple[int, ...]) -> None:
    """The same data set twice."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (samples, *shape), dtype=np.uint8)
    label = rng.integers(0, 10, samples)
    source = Source(samples, lambda low, high: {"image": image[low:high], "label": label[low:high]})
    folder.mkdir()
    for kind, names in zip(KINDS, ((), ("bench",)), strict=True):
        options = WriteOptions(4, seal_for=names)
        write_dataset(source, folder / kind, options, init(), lambda count: None)


def load(folder: Path, epoch: int, *, window: bool) -> int:
    reader = Reader(folder, verify=False)
    steps = None
    if window:
        steps = window_steps(len(reader), BATCH, reader.manifest.sample_bytes, WINDOW)
    loader = Loader(reader, LaneSampler(len(reader), BATCH, window=steps), keep=False)
    count = sum(sum(a.nbytes for a in b.arrays.values()) for b in loader.epoch(epoch))
    loader.close()
    reader.close()
    return count


def by_h5py(folder: Path, rows: int) -> int:
    count = 0
    for path in sorted(folder.glob("*.h5")):
        with open_file(path) as file:
            image = file["image"]
            for low in range(0, len(image), rows):
                count += image[low : low + rows].nbytes
    return count


def verified(folder: Path) -> int:
    Reader(folder).close()
    return sum(path.stat().st_size for path in folder.glob("*.h5"))


def save(folder: Path, buffers: ckpt.Buffers, names: tuple[str, ...]) -> int:
    meta = ckpt.Meta(ckpt.VERSION, 1, 0, 0, {}, {}, {}, {}, None)
    ckpt.save(folder, meta, buffers, init(), keep=1, best=False, seal_for=names)
    return sum(array.nbytes for array in buffers.values())


def restore(folder: Path) -> int:
    return sum(a.nbytes for a in ckpt.read(ckpt.list_checkpoints(folder)[0]).buffers.values())


def copy(source: Path, target: Path, envelope: sealing_keys.Envelope) -> int:
    sealing.seal_file(source, target, envelope)
    return source.stat().st_size


def open_up(source: Path, target: Path) -> int:
    sealing.unseal_file(source, target)
    return source.stat().st_size


def contenders(
    root: Path, megabytes: int, checkpoint: int
) -> dict[str, dict[str, Callable[[int], int]]]:
    """Name -> kind -> what reads or writes once and returns its bytes."""
    found: dict[str, dict[str, Callable[[int], int]]] = {}
    for name, shape in (("small", (28, 28)), ("large", (224, 224, 3))):
        folder = root / name
        make(folder, (megabytes << 20) // int(np.prod(shape)), shape)
        for kind in KINDS:
            own = folder / kind
            for words, window in (("", False), (" windows", True)):
                found.setdefault(f"loader {name}{words}", {})[kind] = (
                    lambda epoch, own=own, window=window: load(own, epoch, window=window)
                )
            for words, rows in ((" whole", 1 << 40), (" slices", 32)):
                if name == "large" or words == " whole":
                    found.setdefault(f"h5py {name}{words}", {})[kind] = (
                        lambda epoch, own=own, rows=rows: by_h5py(own, rows)
                    )
            found.setdefault(f"verified start {name}", {})[kind] = lambda e, own=own: verified(own)
    count = (checkpoint << 20) // 12
    values = np.random.default_rng(1).normal(size=count).astype(np.float32)
    buffers = {"parameters": values, "optimizer.m": values * 2, "optimizer.v": values * 3}
    for kind, names in zip(KINDS, ((), ("bench",)), strict=True):
        own = root / f"checkpoints-{kind}"
        found.setdefault("checkpoint save", {})[kind] = lambda epoch, own=own, names=names: save(
            own, buffers, names
        )
        found.setdefault("checkpoint read", {})[kind] = lambda epoch, own=own: restore(own)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--megabytes", type=int, default=192, help="of each data set")
    parser.add_argument("--checkpoint", type=int, default=192, help="MiB")
    parser.add_argument("--only", default="", help="contenders whose name begins so")
    args = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_identity(root / "keys", "bench")
        sealing_keys.use(root / "keys")
        for what, kinds in contenders(root, args.megabytes, args.checkpoint).items():
            if not what.startswith(args.only):
                continue
            times: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for number in range(args.rounds + 1):  # the first warms up
                for kind in KINDS if number % 2 else KINDS[::-1]:
                    start = time.perf_counter()
                    size = kinds[kind](number)
                    times[kind].append(time.perf_counter() - start)
            speeds = {k: size / statistics.median(t[1:]) / 1e6 for k, t in times.items()}
            share = speeds["sealed"] / speeds["plain"]
            results[what] = speeds | {"share": share}
            print(
                f"{what:24} plain {speeds['plain']:7,.0f} MB/s  sealed {speeds['sealed']:7,.0f} "
                f"MB/s  {share:6.1%}",
                flush=True,
            )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
