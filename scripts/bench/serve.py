"""`mpidl serve` under load: python scripts/bench/serve.py

One server with 2 ranks (rank 0 speaks, rank 1 computes) and the CNN of scripts/bench/predict.py,
images of 28 x 28 floats, one sample a request, one thread a rank; the clients are one process. In
each round, one after the other, --seconds each:
  batched   --clients concurrent clients over gRPC, max_batch_size 32
  single    the same server, the same run as another model with max_batch_size 1
  onnx      the same clients, the model in onnxruntime behind a plain grpcio server with the same
            batching (scripts/bench/peers/onnx_server.py)
  json      the clients of `batched` over REST, tensors in JSON
  p99       requests that arrive at random times, at 70 % of the throughput of `batched`
  floor     the same arrivals at a gRPC server that answers with a constant (peers/echo_server.py)
Printed: medians of the rounds, and ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
METHOD = "/inference.GRPCInferenceService/ModelInfer"
MODELS = """
[models.batched]
path = "{run}"
outputs = ["probability"]
max_batch_size = 32
[models.single]
path = "{run}"
outputs = ["probability"]
max_batch_size = 1
"""


# --- the clients: a process of their own ---
class Grpc:
    """Sends the same request again and again over gRPC."""

    def __init__(self, target: str, model: str) -> None:
        import grpc

        from mpidl.serving.wire import load_messages

        image = np.random.default_rng(0).random((1, 28, 28), np.float32)
        request = load_messages().ModelInferRequest(
            model_name=model, raw_input_contents=[image.tobytes()]
        )
        request.inputs.add(name="image", datatype="FP32", shape=image.shape)
        self._data = request.SerializeToString()
        self._channels = [
            grpc.aio.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)])
            for _ in range(4)
        ]
        self._calls = [channel.unary_unary(METHOD) for channel in self._channels]
        self._next = 0

    async def __call__(self) -> None:
        self._next += 1
        await self._calls[self._next % len(self._calls)](self._data)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


class Rest:
    """Sends the same request again and again over REST, the tensor in JSON."""

    def __init__(self, target: str, model: str) -> None:
        import aiohttp

        image = np.random.default_rng(0).random((1, 28, 28), np.float32)
        data = [round(float(value), 6) for value in image.ravel()]
        tensor = {"name": "image", "datatype": "FP32", "shape": image.shape, "data": data}
        self._data = json.dumps({"inputs": [tensor]}).encode()
        self._url = f"http://{target}/v2/models/{model}/infer"
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def __call__(self) -> None:
        async with self._session.post(self._url, data=self._data) as answer:
            await answer.read()
            assert answer.status == 200

    async def close(self) -> None:
        await self._session.close()


async def load(args: argparse.Namespace) -> dict[str, Any]:
    """Closed loop (--clients), or open loop (--rate)."""
    send: Any = (Rest if args.kind == "rest" else Grpc)(args.target, args.model)
    times: list[float] = []
    begin = time.perf_counter() + 0.3  # what comes before warms up
    end = begin + args.seconds

    async def one() -> None:
        start = time.perf_counter()
        await send()
        if start >= begin:
            times.append(time.perf_counter() - start)

    async def client() -> None:
        while time.perf_counter() < end:
            await one()

    if args.rate:
        rng, tasks = np.random.default_rng(1), []
        at = time.perf_counter()
        while at < end:
            at += rng.exponential(1 / args.rate)
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            tasks.append(asyncio.create_task(one()))
        await asyncio.gather(*tasks)
    else:
        await asyncio.gather(*(client() for _ in range(args.clients)))
    spent = time.perf_counter() - begin
    await send.close()
    p50, p99 = np.percentile(times, [50, 99])
    return {"rate": len(times) / spent, "p50": p50, "p99": p99, "cpu": time.process_time()}


# --- the rounds ---
def run_load(kind: str, target: str, model: str, args: argparse.Namespace, rate: float = 0) -> Any:
    command = [
        *(sys.executable, __file__, "--kind", kind, "--target", target, "--model", model),
        *("--clients", str(args.clients), "--seconds", str(args.seconds), "--rate", str(rate)),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return json.loads(done.stdout)


def start(command: list[str]) -> tuple[subprocess.Popen[str], str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "serving" in line, line
    return process, line


def batch_time(http: str) -> float:
    """Seconds of computing a batch, on average, as the server has measured them."""
    import urllib.request

    with urllib.request.urlopen(f"http://{http}/v2/models/batched/stats") as answer:
        found = json.load(answer)["model_stats"][0]
    spent = sum(one["compute_infer"]["ns"] for one in found["batch_stats"])
    print(f"batch sizes: mean {found['inference_count'] / found['execution_count']:.1f}")
    return float(spent / found["execution_count"] * 1e-9)


def measure(args: argparse.Namespace, run: Path, folder: Path) -> None:
    (folder / "models.toml").write_text(MODELS.format(run=run))
    ports = ("--http-port", "0", "--grpc-port", "0")
    ours, line = start(["mpirun", "-n", "2", "mpidl", "serve", str(folder / "models.toml"), *ports])
    http, grpc = re.findall(r"//([\d.:]+)", line)
    peer, line = start([sys.executable, str(ROOT / "scripts/bench/peers/onnx_server.py"), str(run)])
    onnx = re.findall(r"//([\d.:]+)", line)[0]
    echo, line = start([sys.executable, str(ROOT / "scripts/bench/peers/echo_server.py")])
    constant = re.findall(r"//([\d.:]+)", line)[0]
    plan = {
        "batched": ("grpc", grpc, "batched"),
        "single": ("grpc", grpc, "single"),
        "onnx": ("grpc", onnx, "cnn"),
        "json": ("rest", http, "batched"),
    }
    found: dict[str, list[Any]] = {name: [] for name in (*plan, "p99", "floor")}
    try:
        for _ in range(args.rounds):
            for name, (kind, target, model) in plan.items():
                found[name].append(run_load(kind, target, model, args))
            rate = 0.7 * found["batched"][-1]["rate"]
            found["p99"].append(run_load("grpc", grpc, "batched", args, rate))
            found["floor"].append(run_load("grpc", constant, "echo", args, rate))
        spent = batch_time(http)
    finally:
        for process in (ours, peer, echo):
            os.killpg(process.pid, signal.SIGTERM)
    report(found, spent)


def report(found: dict[str, list[Any]], batch: float) -> None:
    middle = {
        name: {key: statistics.median(one[key] for one in all_) for key in ("rate", "p50", "p99")}
        for name, all_ in found.items()
    }
    for name, one in middle.items():
        print(
            f"{name:8} {one['rate']:8.0f} requests/s, p50 {one['p50'] * 1e3:6.2f} ms, "
            f"p99 {one['p99'] * 1e3:6.2f} ms"
        )
    print(f"a batch takes {batch * 1e3:.2f} ms")
    for other in ("single", "onnx", "json"):
        pairs = zip(found["batched"], found[other], strict=True)
        ratio = statistics.median(a["rate"] / b["rate"] for a, b in pairs)
        print(f"batched / {other}: {ratio:.2f}")
    print(f"p99 at 70 % load / batch time: {middle['p99']['p99'] / batch:.1f}")
    print(f"p99 at 70 % load / floor: {middle['p99']['p99'] / middle['floor']['p99']:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--clients", type=int, default=32)
    for hidden in ("--kind", "--target", "--model"):
        parser.add_argument(hidden, default="", help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.kind:
        import uvloop

        print(json.dumps(uvloop.run(load(args))))
        return
    from mpidl.comm.context import init

    sys.path.insert(0, str(Path(__file__).parent))
    from predict import make

    with tempfile.TemporaryDirectory() as made:
        make(Path(made), 512, init())
        measure(args, Path(made) / "cnn", Path(made))


if __name__ == "__main__":
    main()
