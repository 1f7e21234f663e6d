"""The client: files from outside, a server that moves, answers that are none."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mpidl.errors import ConfigError, DataError, MpidlError, PlatformError
from mpidl.serving import endpoint as endpoints
from mpidl.serving.client import HEADER_LENGTH, Client, Model
from mpidl.serving.endpoint import Endpoint
from mpidl.serving.json_body import format_response, parse
from mpidl.serving.query import ask, choose_model, convert, find_server, fit, reach, read_arrays
from mpidl.serving.server import InferResponse
from mpidl.serving.tensors import NAMES, TensorSpec

HERE = socket.gethostname()
X, Y = TensorSpec("x", "FP32", (2, 3)), TensorSpec("y", "FP32", (2,))
MODEL = Model("m", (X,), (Y,), 4, 2)
ANYTHING = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def made(**changes: Any) -> Endpoint:
    start = "2026-01-01T00:00:00Z"
    about = Endpoint(HERE, "127.0.0.1", 8000, 8001, "17", os.getpid(), ["m"], start)
    return msgspec.structs.replace(about, **changes)


# --- endpoint.json ---
def test_the_file_is_there_for_a_time_and_for_the_owner_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "endpoint.json"
    path.with_name("endpoint.json.partial").write_text("of a server that was killed")
    path.with_name("endpoint.json.partial").chmod(0o644)
    before = os.umask(0)
    try:
        with endpoints.announced(made(), tmp_path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert endpoints.read(path) == made()
    finally:
        os.umask(before)
    assert list(tmp_path.iterdir()) == []
    out, err = capsys.readouterr()
    tunnel = f"ssh -N -L 8000:127.0.0.1:8000 -L 8001:127.0.0.1:8001 {HERE}"
    assert out == "" and tunnel in err


def test_the_file_of_another_server_stays(tmp_path: Path) -> None:
    path, other = tmp_path / "endpoint.json", made(pid=7)
    with endpoints.announced(made(), tmp_path):
        endpoints.write(other, path)
    assert endpoints.read(path) == other


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "endpoint.json").mkdir()
    with endpoints.announced(made(), tmp_path):
        assert "--endpoint" in capsys.readouterr().err
    with pytest.raises(DataError), endpoints.announced(made(), tmp_path, tmp_path / "no" / "e"):
        pass


def test_where_the_file_is(tmp_path: Path) -> None:
    (tmp_path / "models.toml").touch()
    assert endpoints.place_of(tmp_path / "models.toml") == tmp_path / "endpoint.json"
    assert endpoints.place_of(tmp_path) == tmp_path / "endpoint.json"
    assert endpoints.place_of(tmp_path / "a.json") == tmp_path / "a.json"
    with pytest.raises(ConfigError, match="no such file or folder"):
        endpoints.place_of(tmp_path / "run")


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "a; rm -rf ~"}, {"host": "-oProxyCommand=x"}, {"address": "$(id)"},
        {"http_port": 0}, {"http_port": 1 << 16}, {"job": "1 2"}, {"pid": 0}, {"models": "m"},
        {"host": "node\n"}, {"job": "1\n"},
    ],
)  # fmt: skip
def test_a_file_that_lies_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "endpoint.json"
    path.write_bytes(msgspec.json.encode(msgspec.to_builtins(made()) | changes))
    with pytest.raises(DataError, match=r"is no endpoint.json"):
        endpoints.read(path)


@ANYTHING
@given(st.binary(max_size=300), st.integers(0, 300))
def test_any_file_is_read_or_refused(tmp_path: Path, content: bytes, at: int) -> None:
    path = tmp_path / "endpoint.json"
    whole = msgspec.json.encode(made())
    path.write_bytes(whole[:at] + content + whole[at + len(content) :])
    try:
        assert isinstance(endpoints.read(path), Endpoint)
    except DataError as error:
        assert str(path) in str(error)


def test_how_a_server_is_reached() -> None:
    assert reach(made()) == ("127.0.0.1", 8000)
    assert reach(made(host="node7", address="0.0.0.0")) == ("node7", 8000)
    assert reach(made(address="::")) == ("::1", 8000)
    assert reach(made(host="node7", address="10.0.0.7")) == ("10.0.0.7", 8000)
    with pytest.raises(PlatformError, match=r"srun --jobid=17 --overlap .* --nodelist=node7"):
        reach(made(host="node7"))
    with pytest.raises(PlatformError, match=r"--address 127.0.0.1:8000") as found:
        reach(made(host="node7", job=""))
    assert "srun" not in str(found.value)
    assert "-L 8000:[::1]:8000" in made(address="::").tunnel


def test_which_model() -> None:
    assert choose_model(["a"], None) == "a" and choose_model(["a"], "b") == "b"
    for models in ([], ["a", "b"]):
        with pytest.raises(ConfigError, match="--model"):
            choose_model(models, None)


# --- files ---
def test_inputs_of_files(tmp_path: Path) -> None:
    x = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    np.save(tmp_path / "a.npy", x)
    np.savez(tmp_path / "a.npz", x=x, label=np.zeros(9))
    np.savez(tmp_path / "b.npz", any_name=x)
    np.savetxt(tmp_path / "a.csv", x.reshape(4, 6), delimiter=",")
    for name in ("a.npy", "a.npz", "b.npz", "a.csv"):
        path = tmp_path / name
        np.testing.assert_array_equal(fit(read_arrays(path), MODEL, path)["x"], x)
    assert fit({"": x[0]}, MODEL, tmp_path / "a.npy")["x"].shape == (1, 2, 3)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"": np.zeros((4, 6))}, r"another shape: \[4, 6\], where 'x' takes \[n, 2, 3\]"),
        ({"": np.zeros((0, 2, 3))}, "has no samples"),
        ({"": np.zeros((1, 2, 3), np.complex64)}, "dtype complex64, where 'x' takes FP32"),
        ({"": np.zeros((1, 2, 3), "S4")}, "elements of the dtype"),
        ({"a": np.zeros(1), "b": np.zeros(1)}, "has no array 'x', only 'a', 'b'"),
    ],
)
def test_inputs_that_do_not_fit(arrays: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=text):
        fit(arrays, MODEL, Path("file.npz"))


def test_inputs_of_different_lengths() -> None:
    two = Model("m", (X, TensorSpec("z", "FP32", ())), (Y,), 4, 2)
    with pytest.raises(DataError, match="different numbers of samples"):
        fit({"x": np.zeros((2, 2, 3)), "z": np.zeros(3)}, two, Path("file.npz"))


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.csv", "a.h5"])
@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04 no archive", None])
def test_files_that_are_none(name: str, content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((DataError, ConfigError), match=name):
        fit(read_arrays(path), MODEL, path)


def test_objects_are_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=np.array([{}], object))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(DataError, match="without objects"):
            read_arrays(tmp_path / name)


@given(
    hnp.arrays(
        st.sampled_from(["?", "u1", "<i8", ">i4", "<f2", ">f4", "<f8"]),
        st.tuples(st.integers(1, 3), st.just(2), st.just(3)),
        elements=st.integers(0, 1),
    )
)
def test_what_travels_has_the_same_values(array: np.ndarray) -> None:
    found = convert(array, X)
    assert found.dtype in NAMES and found.dtype.kind != "b" and found.itemsize <= 4
    np.testing.assert_array_equal(found, array)


# --- over HTTP ---
class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answer: Any

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, content, size = type(self).answer(self.path, body, self.headers)
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if size is not None:
            self.send_header(HEADER_LENGTH, str(size))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def http_server(answer: Any) -> Iterator[int]:
    """A server of a function of path, body and headers; its port."""
    kind = type("_Kind", (_Answers,), {"answer": staticmethod(answer)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def sums(path: str, body: bytes, headers: Any) -> tuple[int, bytes, int | None]:
    """What a server of MODEL answers, by the server's own parser and formatter."""
    if path == "/v2/health/ready":
        return 200, b"", None
    request, form = parse(body, int(headers[HEADER_LENGTH]), "m", "")
    ((_, x),) = request.inputs
    if len(x) > MODEL.max_batch_size:
        return 400, b'{"error": "too many samples"}', None
    y = x.sum(axis=2, dtype=np.float32)
    content, size = format_response(InferResponse("m", "1", "", [(Y, y)]), form)
    return 200, content, size


@pytest.mark.parametrize("count", [1, 4, 5, 103])
def test_all_samples_come_back_in_order(count: int) -> None:
    x = np.arange(count * 6, dtype=np.float64).reshape(count, 2, 3)
    with http_server(sums) as port:
        found = ask(lambda: Client("127.0.0.1", port), MODEL, {"x": x}, 1)
    np.testing.assert_array_equal(found["y"], x.sum(axis=2))


def test_a_server_that_starts_again_elsewhere_is_found(tmp_path: Path) -> None:
    """The first one withdraws its file and refuses; the second one comes later."""
    x, path = np.ones((40, 2, 3)), tmp_path / "endpoint.json"
    stopped, once = threading.Event(), threading.Lock()

    def stops(where: str, body: bytes, headers: Any) -> tuple[int, bytes, int | None]:
        if where == "/v2/health/ready" and not stopped.is_set():
            return 200, b"", None
        with once:
            if not stopped.is_set():
                path.unlink()
                stopped.set()
        return 500, b'{"error": "rank 1 is lost"}', None

    with http_server(stops) as first, http_server(sums) as second:
        endpoints.write(made(http_port=first), path)

        def start_again() -> None:
            stopped.wait(20)
            endpoints.write(made(http_port=second), path)

        thread = threading.Thread(target=start_again)
        thread.start()
        found = ask(lambda: find_server(path, None, 20), MODEL, {"x": x}, 3)
        thread.join()
        np.testing.assert_array_equal(found["y"], np.full((40, 2), 3))
        assert endpoints.read(path).http_port == second


def test_without_waiting_the_error_comes_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no server runs there"):
        find_server(tmp_path / "endpoint.json", None, 0)
    with (
        http_server(lambda *a: (503, b"", None)) as port,
        pytest.raises(PlatformError, match="does not take requests"),
    ):
        find_server(tmp_path, ("127.0.0.1", port), 0)


@pytest.mark.parametrize(
    ("status", "content", "kind", "text"),
    [
        (400, b'{"error": "unexpected shape"}', ConfigError, "says: unexpected shape"),
        (404, b"<html>", ConfigError, "HTTP status 404"),
        (500, b'{"error": "rank 1"}', PlatformError, "says: rank 1"),
        (200, b"{}", PlatformError, "Inference-Header-Content-Length is None"),
    ],
)
def test_what_a_server_says(status: int, content: bytes, kind: type[MpidlError], text: str) -> None:
    with http_server(lambda *a: (status, content, None)) as port, Client("127.0.0.1", port) as c:
        with pytest.raises(kind, match=text):
            c.infer("m", {"x": np.zeros((1, 2, 3), np.float32)})
        with pytest.raises(MpidlError):
            c.model("m")


@ANYTHING
@given(
    st.binary(max_size=40), st.integers(0, 200), st.integers(-2, 300), st.sampled_from([200, 400])
)
def test_any_answer_is_read_or_refused(change: bytes, at: int, size: int, status: int) -> None:
    """Of a program that is no server of ours; no port is needed for the parser."""
    answer = InferResponse("m", "1", "", [(Y, np.ones((1, 2), np.float32))])
    whole, _ = format_response(answer, parse_form())
    content = whole[:at] + change + whole[at + len(change) :]
    client = Client("127.0.0.1", 1)
    client._send = lambda *a: (status, content, size)  # type: ignore[method-assign]
    try:
        found = client.infer("m", {"x": np.zeros((1, 2, 3), np.float32)})
        assert all(isinstance(array, np.ndarray) for array in found.values())
    except (PlatformError, ConfigError) as error:
        assert "127.0.0.1:1" in str(error)


def parse_form() -> Any:
    from mpidl.serving.json_body import Form

    return Form(binary=True)
