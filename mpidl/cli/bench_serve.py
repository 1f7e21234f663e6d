"""`mpidl bench serve`: load against a running server."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import selectors
from typing import TYPE_CHECKING, Any

from mpidl.comm import launcher
from mpidl.errors import ConfigError

if TYPE_CHECKING:
    from mpidl.serving.client import Address
    from mpidl.serving.load import Outcome

MOST_CONNECTIONS = 512  # `select` takes up to 1024 descriptors
MOST_ARRIVALS = 1_000_000  # held in memory where the server does not keep up
LATE = 0.005  # seconds: a process that measures and comes later than this measures itself
HEAD = "        load  requests   samples/s    p50 ms    p90 ms    p95 ms    p99 ms  errors"


def _numbers(text: str, kind: type[int] | type[float], most: float) -> list[Any]:
    numbers = [kind(part) for part in text.split(",")]
    if not all(math.isfinite(number) and 0 < number <= most for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r}: choose numbers above 0, at most {most:g}")
    return numbers


def _clients(text: str) -> list[int]:
    return _numbers(text, int, MOST_CONNECTIONS)


def _rates(text: str) -> list[float]:
    return _numbers(text, float, 1e6)


def _positive(text: str) -> float:
    number: float = _numbers(text, float, 86400)[0]
    return number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its own options."""
    from mpidl.serving.load_client import PROTOCOLS

    group = parser.add_argument_group("serve (no mpirun)")
    group.add_argument("target", nargs="?", help="host:port of the server, or what it serves")
    group.add_argument(
        "--protocol", choices=list(PROTOCOLS), default="rest", help="(default: %(default)s)"
    )
    group.add_argument("--model", default="", help="its name (default: the only one)")
    group.add_argument(
        "--clients",
        type=_clients,
        help="closed loop: clients that wait for their answers; several: separated by commas",
    )
    group.add_argument(
        "--rate",
        type=_rates,
        help="open loop: requests per second, Poisson; several: separated by commas",
    )
    group.add_argument("--batch", type=int, default=1, help="samples of a request")
    group.add_argument("--seed", type=int, default=0, help="of arrivals and samples")
    group.add_argument("--timeout", type=_positive, default=30.0, help="seconds for an answer")
    group.add_argument(
        "--warmup", type=float, default=0.5, help="seconds of load that are not counted"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure each number of clients, then each rate."""
    from mpidl.observe.plot import check_plot, plot_load
    from mpidl.serving.load_client import make_infer, read_address

    _check(args)
    address = read_address(args.target, args.protocol)
    if args.plot:
        check_plot(args.plot)
    message = make_infer(args.protocol, address, args.model, args.batch, args.seed, args.timeout)
    # epoll waits whole milliseconds, and a late arrival would count as latency of the server
    selector = selectors.SelectSelector()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        found = runner.run(_measure(args, address, message))
    results = [row for row, _ in found]
    if args.plot:
        measured = [(row, outcome.latencies) for row, outcome in found]
        title = f"{args.model or 'model'} at {address.text} ({args.protocol})"
        plot_load(measured, args.plot, title)
    return {
        "target": address.text,
        "protocol": args.protocol,
        "batch": args.batch,
        "seed": args.seed,
        "results": results,
    }


def _check(args: argparse.Namespace) -> None:
    where = "mpidl bench serve"
    if not args.target:
        remedy = "name the server: mpidl bench serve 127.0.0.1:8000"
        raise ConfigError("there is no address", where=where, remedy=remedy)
    if launcher.local_size() > 1:
        remedy = "start it without mpirun (srun -n 1): --clients and --rate say how much load"
        raise ConfigError("one process makes all the load", where=where, remedy=remedy)
    if not (0 < args.seconds <= 86400 and 0 <= args.warmup <= 86400):
        remedy = "--seconds above 0, --warmup at least 0"
        raise ConfigError("measuring must take some time", where=where, remedy=remedy)
    if not 1 <= args.batch <= 1 << 16 or args.seed < 0:
        remedy = "--batch from 1 to 65536, --seed at least 0"
        raise ConfigError("impossible --batch or --seed", where=where, remedy=remedy)
    if max(args.rate or (0,)) * max(args.seconds, args.warmup) > MOST_ARRIVALS:
        what = f"more than {MOST_ARRIVALS:,} requests would arrive"
        raise ConfigError(what, where=where, remedy="lower --rate or --seconds")
    if not args.clients and not args.rate:
        args.clients = [1, 8, 32]


async def _measure(
    args: argparse.Namespace, address: Address, message: bytes
) -> list[tuple[dict[str, Any], Outcome]]:
    from mpidl.serving.load import arrivals, closed_loop, open_loop
    from mpidl.serving.load_client import PROTOCOLS

    say = (lambda line: None) if args.json else print
    connect = PROTOCOLS[args.protocol].connect
    connections = [connect(address, message, args.timeout) for _ in range(MOST_CONNECTIONS)]
    sends = [one.send for one in connections]
    found: list[tuple[dict[str, Any], Outcome]] = []
    say(HEAD)
    async with contextlib.AsyncExitStack() as stack:
        for connection in connections:
            stack.push_async_callback(connection.close)
        for clients in args.clients or ():
            await closed_loop(sends[:clients], args.warmup)
            outcome = await closed_loop(sends[:clients], args.seconds)
            row = {"loop": "closed", "clients": clients} | outcome.summary(args.batch)
            found.append((row, outcome))
            say(_line(row))
        for rate in args.rate or ():
            await open_loop(sends, arrivals(rate, args.warmup, args.seed + 1))
            outcome = await open_loop(sends, arrivals(rate, args.seconds, args.seed))
            row = {"loop": "open", "rate": rate} | outcome.summary(args.batch)
            found.append((row, outcome))
            say(_line(row))
            _warn_late(outcome)
    return found


def _line(row: dict[str, Any]) -> str:
    """A row of the table."""
    load = f"{row['clients']} client(s)" if row["loop"] == "closed" else f"{row['rate']:g}/s"
    times = [row[f"p{share}_ms"] for share in (50, 90, 95, 99)]
    shown = "".join(f"{'-' if t is None else format(t, '.2f'):>10}" for t in times)
    errors = ", ".join(f"{count} x {kind}" for kind, count in row["errors"].items()) or "none"
    return f"{load:>12}{row['requests']:>10}{row['samples_per_second']:>12.1f}{shown}  {errors}"


def _warn_late(outcome: Outcome) -> None:
    """Say so where the load was not what it should have been."""
    import numpy as np

    from mpidl.errors import notice

    late = float(np.percentile(outcome.late, 99)) if outcome.late else 0.0
    if late > LATE:
        notice(
            f"1 % of the requests were sent {late * 1e3:.1f} ms or more too late by this process, "
            "which counts as latency: give it a core of its own, or lower --rate"
        )
