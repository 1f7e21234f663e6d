"""Load for a running server: clients that wait for their answers, or arrivals that wait for nobody.

Closed loop: N clients, each sends its next request when the last one is answered. A slow server is
asked less, so its latencies flatter it. Open loop: requests arrive at a rate as a Poisson process,
and latency counts from the intended arrival, not from when the request could be sent.
Source: Tene, "How NOT to measure latency" (2015); Schroeder et al., NSDI 2006 (open and closed).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (50, 90, 95, 99)
OK = "ok"
Send = Callable[[], Awaitable[str]]


@dataclass
class Outcome:
    """What became of the requests.

    Attributes:
        latencies: Seconds of those that were answered with success, in the order of the answers.
        statuses: Number of requests by status: OK, that of HTTP or gRPC, or `connection`,
            `malformed`, `timeout`.
        late: Seconds by which this process came too late to an arrival (open loop).
        seconds: Until the last answer.
    """

    latencies: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    late: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, status: str, latency: float) -> None:
        """A request is over."""
        self.statuses[status] += 1
        if status == OK:
            self.latencies.append(latency)

    def summary(self, rows: int = 1) -> dict[str, Any]:
        """In numbers.

        Args:
            rows: Samples of a request.

        Returns:
            `p50_ms` to `p99_ms` and `max_ms` are None where no request was answered.
        """
        answered = self.statuses[OK]
        return {
            "requests": self.statuses.total(),
            "seconds": round(self.seconds, 3),
            "samples_per_second": round(answered * rows / max(self.seconds, 1e-9), 2),
            **percentiles(self.latencies),
            "errors": {k: n for k, n in sorted(self.statuses.items()) if k != OK},
        }


def percentiles(seconds: Sequence[float]) -> dict[str, float | None]:
    """Latencies in milliseconds: each is one that was measured, the smallest that is not exceeded
    by that share of all (nearest rank).

    Args:
        seconds: Of each request.
    """
    names = [f"p{share}_ms" for share in PERCENTILES] + ["max_ms"]
    if not len(seconds):
        return dict.fromkeys(names)
    found = np.percentile(np.asarray(seconds), (*PERCENTILES, 100), method="inverted_cdf")
    return {name: round(float(t) * 1e3, 4) for name, t in zip(names, found, strict=True)}


def arrivals(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Times of a Poisson process, in seconds from its start.

    Args:
        rate: Arrivals per second.
        seconds: Its length.
        seed: Equal seeds, equal times.
    """
    rng = np.random.default_rng(seed)
    times = np.empty(0)
    end = 0.0
    while end < seconds:
        gaps = rng.exponential(1 / rate, int(rate * seconds) + 16)
        times = np.concatenate([times, end + np.cumsum(gaps)])
        end = float(times[-1])
    return times[times < seconds]


async def closed_loop(sends: Sequence[Send], seconds: float) -> Outcome:
    """Clients that wait for their answers.

    Args:
        sends: One for each client.
        seconds: After which no request is sent.
    """
    loop, outcome = asyncio.get_running_loop(), Outcome()
    begin = loop.time()

    async def client(send: Send) -> None:
        while (start := loop.time()) < begin + seconds:
            status = await send()
            outcome.add(status, loop.time() - start)
            if status != OK:
                await asyncio.sleep(0.001)  # a server that is down must not be asked in a busy loop

    await asyncio.gather(*(client(send) for send in sends))
    outcome.seconds = loop.time() - begin
    return outcome


async def open_loop(sends: Sequence[Send], times: Sequence[float] | NDArray[np.float64]) -> Outcome:
    """Requests that arrive at given times, whether or not earlier ones are answered.

    Args:
        sends: Requests that can be under way at once; an arrival beyond them waits for one, and
            that counts as latency.
        times: Of arrival, in seconds from now, ascending.
    """
    loop, outcome = asyncio.get_running_loop(), Outcome()
    free: asyncio.LifoQueue[Send] = asyncio.LifoQueue()  # as few connections as are needed
    for send in reversed(sends):
        free.put_nowait(send)
    begin = loop.time()

    async def one(intended: float) -> None:
        outcome.late.append(loop.time() - intended)
        send = await free.get()
        try:
            status = await send()
        finally:
            free.put_nowait(send)
        outcome.add(status, loop.time() - intended)

    async with asyncio.TaskGroup() as group:
        for at in times:
            await asyncio.sleep(max(0.0, begin + float(at) - loop.time()))
            group.create_task(one(begin + float(at)))
    outcome.seconds = loop.time() - begin
    return outcome
