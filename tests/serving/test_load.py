"""Load: percentiles, arrivals, and both loops in virtual time."""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidl.cli.main import main
from mpidl.errors import MpidlError
from mpidl.observe.plot import plot_load
from mpidl.serving import endpoint
from mpidl.serving.client import Address
from mpidl.serving.load import OK, Outcome, arrivals, closed_loop, open_loop, percentiles
from mpidl.serving.load_client import PROTOCOLS, make_infer, random_inputs, read_address
from mpidl.serving.load_rest import Connection, Malformed
from mpidl.serving.tensors import TensorSpec
from mpidl.serving.wire import SERVICE, load_messages


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop in which sleeping takes no time: its clock jumps to what comes next."""

    def __init__(self) -> None:
        super().__init__(selectors.SelectSelector())
        self._now = 0.0
        real = self._selector.select

        def select(timeout: float | None = None) -> Any:
            found = real(0)
            if not found and timeout:
                self._now += timeout
            return found

        self._selector.select = select

    def time(self) -> float:
        return self._now


def run(work: Coroutine[Any, Any, Outcome]) -> Outcome:
    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        return runner.run(work)


class OneAtATime:
    """A server that computes one request after the other, and stands still once."""

    def __init__(self, service: float, stall: tuple[float, float] = (0, 0)) -> None:
        self.service, self.stall = service, stall
        self.lock = asyncio.Lock()

    async def send(self) -> str:
        async with self.lock:
            begin, end = self.stall
            if begin <= (now := asyncio.get_running_loop().time()) < end:
                await asyncio.sleep(end - now)
            await asyncio.sleep(self.service)
        return OK


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=300))
def test_percentiles_are_measured_values_of_nearest_rank(seconds: list[float]) -> None:
    found = percentiles(seconds)
    order = sorted(seconds)
    for share in (50, 90, 95, 99):
        rank = -(-share * len(order) // 100)  # rounded up
        assert found[f"p{share}_ms"] == round(order[rank - 1] * 1e3, 4)
    assert found["max_ms"] == round(order[-1] * 1e3, 4)


def test_no_answer_has_no_percentile() -> None:
    assert set(percentiles([]).values()) == {None}


def test_arrivals_are_poisson_and_repeatable() -> None:
    times = arrivals(1000.0, 20.0, 3)
    np.testing.assert_array_equal(times, arrivals(1000.0, 20.0, 3))
    assert not np.array_equal(times[:50], arrivals(1000.0, 20.0, 4)[:50])
    assert (np.diff(times) > 0).all() and times[0] > 0 and times[-1] < 20
    # mean 20,000 and variance 20,000; gaps exponential: mean and deviation are equal
    assert abs(len(times) - 20_000) < 5 * 20_000**0.5
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(1e-3, rel=0.05)
    assert gaps.std() == pytest.approx(1e-3, rel=0.05)


def test_open_loop_counts_from_the_intended_arrival() -> None:
    """A stall of 1 s is seen by all 100 requests that arrive in it, not by the one in service."""
    server = OneAtATime(0.001, stall=(1.0, 2.0))
    times = np.arange(0, 3, 0.01)
    outcome = run(open_loop([server.send] * 4, times))
    assert outcome.statuses == {OK: 300}
    slow = sorted(t for t in outcome.latencies if t > 0.0015)
    assert len(slow) > 100 and slow[-1] == pytest.approx(1.001)
    # those of the stall: from 1 s downwards, each 10 ms of arrival later and 1 ms of service more
    expected = sorted(1.001 - 0.009 * k for k in range(len(slow)))
    np.testing.assert_allclose(slow, expected, rtol=1e-6)
    assert max(outcome.late) < 1e-9  # the schedule itself was kept
    assert outcome.seconds == pytest.approx(2.991)


def test_closed_loop_sends_one_request_a_client() -> None:
    server = OneAtATime(0.01)
    outcome = run(closed_loop([server.send] * 5, 1.0))
    # the fifth client always waits for four others, but at the start
    assert outcome.statuses[OK] == 104 and outcome.latencies[-1] == pytest.approx(0.05)
    assert outcome.seconds == pytest.approx(1.04)
    summary = outcome.summary(rows=2)
    assert summary["samples_per_second"] == pytest.approx(200)
    assert summary["p50_ms"] == pytest.approx(50)


def test_errors_are_counted_and_have_no_latency() -> None:
    answers = iter([OK, "503", "503", "timeout"] * 1000)

    async def send() -> str:
        await asyncio.sleep(0.25)
        return next(answers)

    summary = run(closed_loop([send], 4.0)).summary()
    assert summary["errors"].keys() == {"503", "timeout"}
    assert summary["errors"]["503"] == 2 * summary["errors"]["timeout"] == 8
    assert summary["requests"] == 16 and summary["p99_ms"] == 250


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:80", Address("127.0.0.1", 80)),
        ("http://node7:8000/", Address("node7", 8000)),
        ("node7", Address("node7", 8000)),
        ("[::1]:9", Address("::1", 9)),
    ],
)
def test_addresses(text: str, expected: Address) -> None:
    assert read_address(text, "rest") == expected
    assert read_address(expected.text, "rest") == expected
    assert read_address(expected.text, "grpc") == expected


def test_ports_of_protocols(tmp_path: Path) -> None:
    assert read_address("node7", "grpc") == read_address("grpc://node7", "grpc")
    assert read_address("node7", "grpc") == Address("node7", 8001)
    endpoint.write(endpoint.describe("127.0.0.1", 8123, 8124, ["m"]), tmp_path / "endpoint.json")
    assert read_address(str(tmp_path), "grpc") == Address("127.0.0.1", 8124)


@pytest.mark.parametrize(
    "text", ["", "https://a:1", "a:b", "a:99999", "http://a/path", ":80", "[", "ftp://a"]
)
def test_no_addresses(text: str) -> None:
    with pytest.raises(MpidlError, match="no address"):
        read_address(text, "rest")


def test_the_address_of_what_is_served(tmp_path: Path) -> None:
    with pytest.raises(MpidlError, match="no server runs"):
        read_address(str(tmp_path), "rest")
    here = endpoint.describe("127.0.0.1", 8123, 8124, ["m"])
    endpoint.write(here, tmp_path / "endpoint.json")
    assert read_address(str(tmp_path), "rest") == Address("127.0.0.1", 8123)
    elsewhere = msgspec.structs.replace(here, host="node7")
    endpoint.write(elsewhere, tmp_path / "endpoint.json")
    with pytest.raises(MpidlError, match="on node7 only"):
        read_address(str(tmp_path), "rest")


def answered(*answers: bytes) -> list[str | tuple[int, bytes]]:
    """What a connection makes of a server that sends these bytes, then hangs up."""

    async def run() -> list[str | tuple[int, bytes]]:
        waiting = list(answers)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(waiting.pop(0))
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
            connection = Connection(address, b"GET / HTTP/1.1\r\n\r\n", 20.0)
            found: list[str | tuple[int, bytes]] = []
            for _ in answers:
                try:
                    found.append(await connection.request())
                except (OSError, Malformed) as error:
                    found.append(type(error).__name__)
            await connection.close()
            return found

    return asyncio.run(run())


def test_answers() -> None:
    good = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi"
    assert answered(good, good.replace(b"200 OK", b"503")) == [(200, b"hi"), (503, b"hi")]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"", "ConnectionResetError"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhi", "ConnectionResetError"),
        (b"HTTP/1.1 200 OK\r\n\r\nhi", "Malformed"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "Malformed"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n", "Malformed"),
        (b"SSH-2.0\r\n\r\n", "Malformed"),
        (b"x" * (1 << 17), "Malformed"),
    ],
)
def test_bad_answers(answer: bytes, expected: str) -> None:
    assert answered(answer) == [expected]


MESSAGES = load_messages()
BATCH = MESSAGES.ModelMetadataResponse(
    name="m", inputs=[{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
)


@contextmanager
def grpc_server(**answers: Callable[[bytes], bytes | grpc.StatusCode]) -> Iterator[Address]:
    """A server of some methods, on bytes."""

    def method(answer: Callable[[bytes], bytes | grpc.StatusCode]) -> Any:
        def call(data: bytes, context: Any) -> bytes:
            found = answer(data)
            if isinstance(found, bytes):
                return found
            context.abort(found, "not now")
            raise AssertionError

        return grpc.unary_unary_rpc_method_handler(call)

    made = grpc.server(ThreadPoolExecutor(4))
    methods = {name: method(answer) for name, answer in answers.items()}
    made.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    port = made.add_insecure_port("127.0.0.1:0")
    made.start()
    try:
        yield Address("127.0.0.1", port)
    finally:
        made.stop(0).wait()


def index(*names: str) -> bytes:
    models = [{"name": name, "state": "READY"} for name in names]
    found: bytes = MESSAGES.RepositoryIndexResponse(models=models).SerializeToString()
    return found


def test_load_over_grpc() -> None:
    """The server sees one whole request again and again; what it says is the status."""
    seen: list[bytes] = []
    statuses = iter([b"", b"any answer", grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND])

    def infer(data: bytes) -> bytes | grpc.StatusCode:
        seen.append(data)
        return next(statuses)

    async def send(address: Address, message: bytes) -> list[str]:
        connection = PROTOCOLS["grpc"].connect(address, message, 20.0)
        try:
            return [await connection.send() for _ in range(4)]
        finally:
            await connection.close()

    with grpc_server(
        RepositoryIndex=lambda data: index("m", "m"),
        ModelMetadata=lambda data: BATCH.SerializeToString(),
        ModelInfer=infer,
    ) as address:
        message = make_infer("grpc", address, "", 5, 1, 20.0)
        assert asyncio.run(send(address, message)) == [OK, OK, "UNAVAILABLE", "NOT_FOUND"]
    assert seen == [message] * 4
    request = MESSAGES.ModelInferRequest.FromString(message)
    values = np.frombuffer(request.raw_input_contents[0], np.float32)
    assert request.model_name == "m" and list(request.inputs[0].shape) == [5, 3]
    assert values.size == 15 and 0 <= values.min() < values.max() < 1


def test_an_answer_that_comes_too_late_over_grpc() -> None:
    async def send(address: Address) -> str:
        connection = PROTOCOLS["grpc"].connect(address, b"", 0.05)
        try:
            return await connection.send()
        finally:
            await connection.close()

    done = threading.Event()

    def infer(data: bytes) -> bytes:
        done.wait(20)
        return b""

    with grpc_server(ModelInfer=infer) as address:
        assert asyncio.run(send(address)) == "timeout"
        done.set()


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({}, "Method not found"),
        ({"RepositoryIndex": lambda data: index("a", "b")}, "several models"),
        ({"RepositoryIndex": lambda data: index()}, "no models"),
        ({"RepositoryIndex": lambda data: b"\xff\xff"}, "no server answers: INTERNAL"),
        ({"RepositoryIndex": lambda data: grpc.StatusCode.UNAVAILABLE}, "UNAVAILABLE, not now"),
    ],
)
def test_grpc_servers_that_cannot_be_measured(answers: dict[str, Any], message: str) -> None:
    with grpc_server(**answers) as address, pytest.raises(MpidlError, match=message):
        make_infer("grpc", address, "", 1, 0, 20.0)


@given(
    st.sampled_from(["FP32", "INT64", "UINT8", "FP16"]),
    st.lists(st.integers(-1, 9) | st.integers(1 << 30, 1 << 40), max_size=4),
    st.integers(1, 3),
)
def test_samples_of_any_shape_are_small_or_refused(
    datatype: str, shape: list[int], rows: int
) -> None:
    spec = TensorSpec("x", datatype, tuple(shape))
    try:
        found = random_inputs((spec,), rows, 0, "model 'm'")["x"]
    except MpidlError as error:
        assert "--batch" in error.remedy
    else:
        assert found.shape == (rows, *(max(1, size) for size in shape))
        assert found.dtype == spec.dtype and found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no address"),
        (("127.0.0.1:1",), "no server answers"),
        (("127.0.0.1:1", "--protocol", "grpc"), "no server answers: UNAVAILABLE"),
        (("nobody.invalid:80",), "no server answers"),
        (("127.0.0.1:1", "--seconds", "nan"), "must take some time"),
        (("127.0.0.1:1", "--batch", "0"), "--batch"),
        (("127.0.0.1:1", "--rate", "1e6", "--seconds", "5"), "lower --rate"),
        (("127.0.0.1:1", "--plot", "/nowhere/x.png"), "/nowhere"),
    ],
)
def test_commands_that_are_refused(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "serve", *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "1,x", "-3", "1e9", "nan", ""])
def test_impossible_loads(text: str) -> None:
    for option in ("--clients", "--rate"):
        with pytest.raises(SystemExit):
            main(["bench", "serve", "127.0.0.1:1", option, text])


def test_plot(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    measured = []
    for load in ({"loop": "closed", "clients": 3}, {"loop": "open", "rate": 9.5}):
        outcome = Outcome(seconds=1.0)
        for latency in rng.exponential(0.01, 500):
            outcome.add(OK, latency)
        measured.append((load | outcome.summary(), outcome.latencies))
    measured.append(({"loop": "open", "rate": 100.0} | Outcome().summary(), []))
    plot_load(measured, tmp_path / "load.png", "m")
    assert (tmp_path / "load.png").stat().st_size > 10_000


def test_only_serve_has_an_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "network", "127.0.0.1:1"]) == 1
    assert "'mpidl bench serve' only" in capsys.readouterr().err


def test_several_processes_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
    assert main(["bench", "serve", "127.0.0.1:1"]) == 1
    assert "one process makes all the load" in capsys.readouterr().err
