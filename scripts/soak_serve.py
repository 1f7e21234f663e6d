"""A server under mixed load for an hour: memory must stay flat, and no descriptor may leak.

    python scripts/soak_serve.py [models.toml | RUN] [--seconds 3600]

Starts `mpidl serve` on --ranks ranks (without a model: two small ones that it trains first) and
asks it in all ways at once: inference over REST (binary tensors and JSON) and gRPC, clients that
vanish in the middle of a request, requests that are malformed, and a second model that is unloaded
and loaded again. Resident memory and open descriptors of every rank are read from /proc.

Fails where an inference of a whole request is refused, where memory grows by more than --growth-mib
after the warm-up (by the median slope, and by the medians of the first and the last fifth),
descriptors by more than --descriptors, or where they do not come back to what they were before the
load. Source of the slope: Theil and Sen, see Sen, JASA 63 (1968).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mpidl.errors import MpidlError
from mpidl.serving.client import Address, model_path
from mpidl.serving.load import OK
from mpidl.serving.load_client import PROTOCOLS, Specs, random_inputs

ROOT = Path(__file__).resolve().parent.parent
MODELS = """
[models.kept]
path = "{folder}/mlp"
max_batch_size = 16
[models.other]
path = "{folder}/cnn"
max_batch_size = 4
"""
PAGE = os.sysconf("SC_PAGE_SIZE")
TIMEOUT = 30.0  # seconds for an answer, and for descriptors to be closed after the load
POINTS = 400  # of a series that slopes are taken of


# --- what is measured ---
@dataclass
class Series:
    """Memory and descriptors of a rank over time.

    Attributes:
        pid: Its process.
        seconds: When it was looked at.
        mib: Resident memory.
        descriptors: Open ones.
    """

    pid: int
    seconds: list[float] = field(default_factory=list)
    mib: list[float] = field(default_factory=list)
    descriptors: list[float] = field(default_factory=list)

    def look(self, now: float) -> None:
        """Add what is now."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        self.seconds.append(now)
        self.mib.append(pages * PAGE / 2**20)
        self.descriptors.append(count_descriptors(self.pid))


def count_descriptors(pid: int) -> int:
    """Open descriptors of a process."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def growth(seconds: Sequence[float], values: Sequence[float], warm_up: float) -> float:
    """By how much a series grows after its warm-up, whatever single values do.

    Args:
        seconds: Ascending.
        values: As many.
        warm_up: Seconds that are left out.

    Returns:
        The larger of: the median slope of all pairs times the length; the median of the last fifth
        less that of the first.
    """
    times, found = np.asarray(seconds, float), np.asarray(values, float)
    kept = times >= times[0] + warm_up
    times, found = times[kept], found[kept]
    if len(times) < 5:
        raise SystemExit("too few values after the warm-up: give more --seconds")
    fifth = len(found) // 5
    ends = float(np.median(found[-fifth:]) - np.median(found[:fifth]))
    chosen = np.unique(np.linspace(0, len(times) - 1, POINTS).astype(int))
    t, v = times[chosen], found[chosen]
    later, earlier = np.tril_indices(len(t), -1)
    slope = np.median((v[later] - v[earlier]) / (t[later] - t[earlier]))
    return max(ends, float(slope * (t[-1] - t[0])))


def find_ranks(pid: int) -> dict[int, int]:
    """The ranks below a process: number -> process."""
    found: dict[int, int] = {}
    waiting = [pid]
    while waiting:
        pid = waiting.pop()
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            content = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        waiting += map(int, children)
        if rank := re.search(rb"\0OMPI_COMM_WORLD_RANK=(\d+)\0", content):
            found[int(rank[1])] = pid
    return found


# --- the load ---
class Load:
    """All that is sent at once.

    Args:
        http: Address of REST.
        grpc: Address of gRPC.
        kept: A model that is served all the time.
        other: A model that comes and goes; None: there is none.

    Attributes:
        counts: Answers by what was sent, and by status.
    """

    def __init__(self, http: Address, grpc: Address, kept: str, other: str | None) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._http, self._grpc, self._other = http, grpc, other
        self._random = random.Random(0)
        client = PROTOCOLS["rest"].ask(http, TIMEOUT)
        inputs, _ = client.tensors(kept)
        client.close()
        samples = random_inputs(inputs, 2, 0, kept)
        self._rest = PROTOCOLS["rest"].encode(http, kept, samples)
        self._raw = PROTOCOLS["grpc"].encode(grpc, kept, samples)
        self._json = self._post(f"{model_path(kept)}/infer", json_body(inputs))
        self._bad = [
            self._post(f"{model_path(kept)}/infer", body)
            for body in (b"{", b"[" * 5000, b"{}", json_body(inputs).replace(b"[2,", b"[3,"))
        ] + [self._post(f"{model_path('none')}/infer", json_body(inputs))]

    def _post(self, path: str, body: bytes = b"") -> bytes:
        head = f"POST {path} HTTP/1.1\r\nHost: {self._http.text}\r\nContent-Length: {len(body)}"
        return head.encode() + b"\r\n\r\n" + body

    async def run(self, seconds: float) -> None:
        """Send everything for so long."""
        end = time.monotonic() + seconds
        clients = [
            *[self._whole("rest", self._http, self._rest, end) for _ in range(3)],
            *[self._whole("grpc", self._grpc, self._raw, end) for _ in range(3)],
            self._whole("json", self._http, self._json, end),
            self._repeat(self._vanish_rest, 0.005, end),
            self._repeat(self._vanish_grpc, 0.02, end),
            self._repeat(self._malformed_rest, 0.01, end),
            self._repeat(self._malformed_grpc, 0.02, end),
        ]
        if self._other is not None:
            clients.append(self._repeat(self._reload, 0.5, end))
        await asyncio.gather(*clients)

    async def _whole(self, name: str, address: Address, message: bytes, end: float) -> None:
        """A client that waits for its answers; it comes again over a new connection."""
        protocol = PROTOCOLS["grpc" if name == "grpc" else "rest"]
        while time.monotonic() < end:
            connection = protocol.connect(address, message, TIMEOUT)
            for _ in range(200):
                self.counts[name, await connection.send()] += 1
                if time.monotonic() >= end:
                    break
            await connection.close()

    async def _repeat(self, act: Callable[[], Awaitable[None]], pause: float, end: float) -> None:
        while time.monotonic() < end:
            await act()
            await asyncio.sleep(pause)

    async def _once(self, name: str, message: bytes) -> None:
        connection = PROTOCOLS["rest"].connect(self._http, message, TIMEOUT)
        self.counts[name, await connection.send()] += 1
        await connection.close()

    async def _vanish_rest(self) -> None:
        """Hang up in the middle of a request, or before its answer, in order or not."""
        message = self._random.choice([self._rest, self._json])
        _, writer = await asyncio.open_connection(self._http.host, self._http.port)
        writer.write(message[: self._random.randrange(1, len(message) + 1)])
        await writer.drain()
        if self._random.random() < 0.5:  # a reset in place of an end
            own: socket.socket = writer.get_extra_info("socket")
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()
        self.counts["vanished rest", "-"] += 1

    async def _vanish_grpc(self) -> None:
        """Cancel a call, whose connection goes too."""
        connection = PROTOCOLS["grpc"].connect(self._grpc, self._raw, TIMEOUT)
        task = asyncio.create_task(connection.send())
        await asyncio.sleep(self._random.random() * 0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await connection.close()
        self.counts["vanished grpc", "-"] += 1

    async def _malformed_rest(self) -> None:
        await self._once("malformed rest", self._random.choice(self._bad))

    async def _malformed_grpc(self) -> None:
        raw = bytearray(self._raw)
        del raw[self._random.randrange(len(raw)) :]
        connection = PROTOCOLS["grpc"].connect(self._grpc, bytes(raw), TIMEOUT)
        self.counts["malformed grpc", await connection.send()] += 1
        await connection.close()

    async def _reload(self) -> None:
        for verb in ("unload", "load"):
            path = f"/v2/repository/models/{self._other}/{verb}"
            await self._once("repository", self._post(path))


def json_body(inputs: Specs) -> bytes:
    """An inference request of two samples in JSON."""
    import msgspec

    tensors = [
        {
            "name": name,
            "shape": array.shape,
            "datatype": spec.datatype,
            "data": array.ravel().tolist(),
        }
        for (name, array), spec in zip(random_inputs(inputs, 2, 0, "").items(), inputs, strict=True)
    ]
    return msgspec.json.encode({"inputs": tensors})


def wrong_answers(counts: Counter[tuple[str, str]]) -> list[str]:
    """What should have been answered otherwise."""
    wrong = []
    for kind in ("rest", "grpc", "json"):
        wrong += [] if counts[kind, OK] else [f"no {kind} request was answered"]
    for (kind, status), count in sorted(counts.items()):
        whole = kind in ("rest", "grpc", "json", "repository")
        refused = status.startswith("4") or status in ("INVALID_ARGUMENT", "NOT_FOUND")
        if (whole and status != OK) or (kind.startswith("malformed") and not refused):
            wrong.append(f"{count} x {kind}: {status}")
    return wrong


# --- the server ---
class Served:
    """A server of its own, and what it prints."""

    def __init__(self, path: Path, ranks: int, folder: Path) -> None:
        self.errors = folder / "stderr"
        ports = ("--http-port", "0", "--grpc-port", "0", "--endpoint", str(folder / "endpoint"))
        with self.errors.open("w") as errors:
            self._process = subprocess.Popen(
                ["mpirun", "-n", str(ranks), "mpidl", "serve", str(path), *ports],
                stdout=subprocess.PIPE,
                stderr=errors,
                stdin=subprocess.DEVNULL,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )
        assert self._process.stdout is not None
        places = re.findall(r"//([\d.]+):(\d+)", self._process.stdout.readline())
        if len(places) != 2:
            self.stop()
            raise SystemExit(f"no server:\n{self.errors.read_text()}")
        self.http, self.grpc = (Address(host, int(port)) for host, port in places)
        self.ranks = find_ranks(self._process.pid)

    def stop(self) -> int:
        """End it in order; its exit status, -1 where it had to be killed."""
        if 0 in (ranks := find_ranks(self._process.pid)):
            os.kill(ranks[0], signal.SIGTERM)
        try:
            return self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            return -1


async def soak(load: Load, series: dict[int, Series], seconds: float) -> None:
    """Send, and look at the ranks meanwhile."""
    task = asyncio.create_task(load.run(seconds))
    begin = time.monotonic()
    pause = min(5.0, max(0.1, seconds / 200))
    while not task.done():
        for one in series.values():
            one.look(time.monotonic() - begin)
        await asyncio.wait([task], timeout=pause)
    await task


def left_open(before: dict[int, int]) -> list[str]:
    """Ranks that hold more descriptors than before the load, once they had time to close them."""
    end = time.monotonic() + TIMEOUT
    while True:
        more = {pid: count_descriptors(pid) - count for pid, count in before.items()}
        if max(more.values()) <= 0 or time.monotonic() > end:
            return [
                f"{n} descriptor(s) of process {pid} stay open" for pid, n in more.items() if n > 0
            ]
        time.sleep(0.1)


def examine(args: argparse.Namespace, served: Served) -> list[str]:
    """What is wrong with a server after the load."""
    client = PROTOCOLS["rest"].ask(served.http, TIMEOUT)
    names = client.models()
    client.close()
    load = Load(served.http, served.grpc, names[0], names[1] if len(names) > 1 else None)
    asyncio.run(load.run(min(2.0, args.seconds / 5)))  # what is opened once, is
    time.sleep(1.0)
    before = {pid: count_descriptors(pid) for pid in served.ranks.values()}
    series = {rank: Series(pid) for rank, pid in sorted(served.ranks.items())}
    asyncio.run(soak(load, series, args.seconds))
    wrong = wrong_answers(load.counts)
    for (kind, status), count in sorted(load.counts.items()):
        print(f"{count:>9} x {kind}: {status}")
    for rank, one in series.items():
        mib, more = (
            growth(one.seconds, values, args.warm_up) for values in (one.mib, one.descriptors)
        )
        print(
            f"rank {rank}: {one.mib[0]:.1f} to {one.mib[-1]:.1f} MiB, {mib:+.2f} MiB after "
            f"{args.warm_up:g} s; {one.descriptors[0]:.0f} to {max(one.descriptors):.0f} "
            f"descriptors, {more:+.1f}"
        )
        if mib > args.growth_mib:
            wrong.append(f"rank {rank} grows: {mib:.2f} MiB in {args.seconds:g} s")
        if more > args.descriptors:
            wrong.append(f"rank {rank} opens descriptors: {more:.1f} in {args.seconds:g} s")
    return wrong + left_open(before)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("served", type=Path, nargs="?", help="(default: two small models)")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--warm-up", type=float, help="seconds (default: a fifth, at most 300)")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--growth-mib", type=float, default=32.0, help="(default: %(default)s)")
    parser.add_argument("--descriptors", type=float, default=8.0, help="(default: %(default)s)")
    args = parser.parse_args()
    args.warm_up = min(args.seconds / 5, 300.0) if args.warm_up is None else args.warm_up
    with tempfile.TemporaryDirectory() as made:
        if args.served is None:
            command = [sys.executable, str(ROOT / "scripts" / "bench" / "predict.py")]
            subprocess.run([*command, "--make", made, "--samples", "512"], check=True)
            args.served = Path(made) / "models.toml"
            args.served.write_text(MODELS.format(folder=made))
        served = Served(args.served, args.ranks, Path(made))
        try:
            wrong = examine(args, served)
        except (OSError, MpidlError) as error:
            wrong = [f"the server is gone, or refuses clients: {error}"]
        finally:
            status = served.stop()
        errors = served.errors.read_text()
        wrong += [] if status == 75 else [f"it ended with the status {status}"]
        wrong += [errors] if wrong or "Traceback" in errors else []
    print("\n".join(["FAILED:", *wrong]) if wrong else "passed", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
