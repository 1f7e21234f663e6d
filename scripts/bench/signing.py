"""Signatures and audit: python scripts/bench/signing.py

In each round, one after the other, over a folder of files in the page cache:
  sign, verify        ours
  model-signing ...   the package's, with the same key, on the same files
Then the cost of a record of the audit log, with and without heads; and of a training run as it is,
and with `[security]`: signed data, signed checkpoints, audit. Printed: medians, and ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from model_signing import signing as theirs
from model_signing import verifying

from mpidl.comm.context import init
from mpidl.config import build_config
from mpidl.data.formats.source import Source
from mpidl.data.writer import WriteOptions, write_dataset
from mpidl.security import signing
from mpidl.security.audit.log import AuditLog
from mpidl.security.signer import load_signer
from mpidl.security.trusted import Trusted
from mpidl.train.trainer import Trainer

RECORDS = 5000
Case = dict[str, Callable[[], object]]


def measure(cases: Case, rounds: int) -> dict[str, float]:
    """Median seconds of each, taken in turn."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            if number:  # the first round warms the page cache
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def make_key(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    path = folder / "k.pem"
    path.touch(0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "k.pub").write_bytes(public)
    return path


def signatures(folder: Path, mib: int, rounds: int) -> None:
    model, key = folder / "model", folder / "k.pem"
    model.mkdir()
    block = np.random.default_rng(0).bytes(mib << 17)
    for number in range(8):
        (model / f"part-{number}").write_bytes(block)
    signer, trusted = load_signer(str(key)), Trusted.load([folder / "k.pub"])
    signing.sign(model, signer, folder / "ours.sig")
    found = measure(
        {
            "sign": lambda: signing.sign(model, signer, folder / "ours.sig"),
            "model-signing sign": lambda: (
                theirs.Config()
                .use_elliptic_key_signer(private_key=key)
                .sign(model, folder / "theirs.sig")
            ),
            "verify": lambda: signing.verify(model, trusted, folder / "ours.sig"),
            "model-signing verify": lambda: (
                verifying.Config()
                .use_elliptic_key_verifier(public_key=folder / "k.pub")
                .verify(model, folder / "theirs.sig")
            ),
        },
        rounds,
    )
    for name, seconds in found.items():
        print(f"{name:22} {mib / seconds:8.0f} MiB/s")
    for name in ("sign", "verify"):
        print(f"{name}: {found[f'model-signing {name}'] / found[name]:.2f} x model-signing")


def records(folder: Path, rounds: int) -> None:
    signer, number = load_signer(str(folder / "k.pem")), iter(range(1000))

    def write(every: int) -> None:
        log = AuditLog(folder / "logs", folder / "logs", signer, every, f"l{next(number)}")
        for step in range(RECORDS):
            log.add("checkpoint.saved", object="/runs/a", details={"step": step})
        log.close()

    found = measure({"rare heads": lambda: write(10**9), "every 64": lambda: write(64)}, rounds)
    for name, seconds in found.items():
        print(f"audit record, {name:12} {1e6 * seconds / RECORDS:6.1f} us")


def training(folder: Path, steps: int, rounds: int) -> None:
    context = init()
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.integers(0, 256, (4096, 28, 28), dtype=np.uint8),
        "label": rng.integers(0, 10, 4096),
    }
    source = Source(4096, lambda low, high: {k: v[low:high] for k, v in arrays.items()})
    write_dataset(source, folder / "data", WriteOptions(4), context, lambda n: None)
    signing.sign(folder / "data", load_signer(str(folder / "k.pem")))
    secure = {
        "require_signatures": True,
        "sign_checkpoints": True,
        "trusted": [str(folder / "k.pub")],
        "identity": str(folder / "k.pem"),
        "audit": {"folder": str(folder / "audit")},
    }

    def train(name: str, security: dict[str, Any]) -> None:
        tree: dict[str, Any] = {
            "data": {"train": str(folder / "data")},
            "model": {"name": "cnn", "channels": [32, 64], "hidden": [128]},
            "train": {"output": str(folder / name), "max_steps": steps, "epochs": 1000},
            "security": security,
        }
        trainer = Trainer(build_config(tree, name), context, observers=[])
        trainer.prepare(overwrite=True)
        trainer.run()
        trainer.close()

    found = measure(
        {"plain": lambda: train("plain", {}), "secured": lambda: train("secured", secure)}, rounds
    )
    for name, seconds in found.items():
        print(f"training, {name:8} {seconds:6.2f} s for {steps} steps of 128")
    print(f"secured: {found['secured'] / found['plain']:.3f} x plain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="of the signed folder")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_key(folder)
        signatures(folder, args.mib, args.rounds)
        records(folder, args.rounds)
        training(folder, args.steps, args.rounds)


if __name__ == "__main__":
    main()
