"""Encrypted ranks beside plain ones: the ring at 64 MiB, and messages of 4 KiB; interleaved.

    mpirun -n 2 python scripts/bench/secure_channel.py [--json] [--mib 64] [--repeats 15]

Both kinds of rank send through MPI; the plain ring is the same schedule. Shared memory is off in
both, as the scope "all" has it. Times are medians of the slowest rank.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from mpidl.collectives import Group, all_reduce
from mpidl.comm import objects
from mpidl.comm.context import Context, init
from mpidl.security import encrypted_ranks
from mpidl.security.encrypted_ranks import EncryptedRanks
from mpidl.security.handshake import Credentials

SMALL = 4096  # bytes
PONGS = 200


def credentials(named: str = "") -> Credentials:
    """A certificate that signs itself: what is measured comes after the handshake."""
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    made = made.public_key(key.public_key()).not_valid_before(now - datetime.timedelta(hours=1))
    made = made.not_valid_after(now + datetime.timedelta(hours=1))
    return Credentials((made.sign(key, None),), key, "bench", lambda chain: "bench")


def median(
    calls: dict[str, Callable[[], None]], context: Context, repeats: int
) -> dict[str, float]:
    """Seconds of each call, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 2):
        for name, call in calls.items():
            context.barrier()
            start = time.perf_counter()
            call()
            taken[name].append(objects.largest(context.comm, time.perf_counter() - start))
    return {name: statistics.median(times[2:]) for name, times in taken.items()}


def ping_pong(group: Any, count: int) -> None:
    """`count` messages of 4 KiB there and back."""
    buffer, comm = np.zeros(SMALL, np.uint8), group.comm
    for _ in range(count):
        if group.rank == 0:
            comm.Send(buffer, 1, 5)
            comm.Recv(buffer, 1, 5)
        elif group.rank == 1:
            comm.Recv(buffer, 0, 5)
            comm.Send(buffer, 0, 5)


def measure(context: Context, scope: str, mib: float, repeats: int) -> dict[str, Any]:
    """The figures of both kinds of ranks."""
    encrypted_ranks.load_credentials = credentials
    start = time.perf_counter()
    secure = EncryptedRanks(EncryptedRanks.Options(scope=scope)).open(context)
    opening = time.perf_counter() - start
    groups = {"plain": Group(context.comm, name="plain"), "secure": Group(secure.comm, name="s")}
    buffer = np.ones(int(mib * (1 << 18)), np.float32)

    def ring(group: Group) -> Callable[[], None]:
        return lambda: all_reduce(buffer, comm=group, op="max", algorithm="ring")

    def pong(group: Group) -> Callable[[], None]:
        return lambda: ping_pong(group, PONGS)

    rings = median({name: ring(group) for name, group in groups.items()}, context, repeats)
    pongs = median({name: pong(group) for name, group in groups.items()}, context, repeats)
    each = {name: 1e6 * seconds / (2 * PONGS) for name, seconds in pongs.items()}
    return {
        "ranks": context.size,
        "mib": mib,
        "scope": scope,
        "handshake_ms": 1e3 * opening,
        "plain_ms": 1e3 * rings["plain"],
        "secure_ms": 1e3 * rings["secure"],
        "part_of_speed": rings["plain"] / rings["secure"],
        "plain_us": each["plain"],
        "secure_us": each["secure"],
        "more_us_a_message": each["secure"] - each["plain"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=float, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--scope", choices=("all", "nodes"), default="all")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    context = init()
    found = measure(context, args.scope, args.mib, args.repeats)
    if context.is_root:
        shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items())
        print(json.dumps(found) if args.json else "  ".join(shown))


if __name__ == "__main__":
    main()
