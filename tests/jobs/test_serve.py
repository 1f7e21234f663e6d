"""A server of two ranks, called by unmodified clients of Triton and by curl."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http_client
import tritonclient.http.aio as http_aio
from tritonclient.utils import InferenceServerException

from mpidl.data.hdf5 import open_file
from tests.jobs.conftest import CONFIG, blobs, write
from tests.jobs.helpers import Job, finish, mpidl, start
from tests.jobs.test_train import children_of

DOCS = Path(__file__).parents[2] / "docs" / "serving.md"
MODELS = """
[models.cnn]
path = "run"
max_batch_size = 16
[models.single]
versions = {{3 = "{folder}/run", 7 = "run/checkpoints/step-00000009.h5"}}
version_policy = "all"
outputs = ["probability"]
max_batch_size = 1
"""
IMAGES = blobs(8, 5)["image"]


class Serving:
    """A running server."""

    def __init__(
        self, path: Path, *mpirun: str, ranks: int = 2, options: tuple[str, ...] = ()
    ) -> None:
        ports = ("--http-port", "0", "--grpc-port", "0", *options)
        self.process = start(ranks, *mpirun, "mpidl", "serve", str(path), *ports)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.findall(r"//([\d.:]+)", line)
        if len(found) != 2:
            pytest.fail(f"no server: {line}\n{finish(self.process).err}")
        self.http, self.grpc = found

    @property
    def ranks(self) -> list[int]:
        """Their processes, by rank."""
        found = {}
        for pid in children_of(self.process.pid):
            content = Path(f"/proc/{pid}/environ").read_bytes()
            if rank := re.search(rb"OMPI_COMM_WORLD_RANK=(\d+)", content):
                found[int(rank[1])] = pid
        return [found[rank] for rank in sorted(found)]

    def stop(self) -> Job:
        os.kill(self.ranks[0], signal.SIGTERM)
        return finish(self.process)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, its predictions for IMAGES, and models.toml."""
    made = tmp_path_factory.mktemp("serve")
    write(made / "train", blobs(500, 0))
    write(made / "test", blobs(101, 1), 2)
    write(made / "new", {"image": IMAGES, "label": np.zeros(8, np.int64)}, 1)
    (made / "run.toml").write_text(CONFIG.format(folder=made))
    assert mpidl(2, "train", str(made / "run.toml"), "--set", "train.max_steps=9").status == 0
    out = ("predict", str(made / "run"), str(made / "new"), "--out", str(made / "p.h5"))
    assert mpidl(1, *out).status == 0
    (made / "models.toml").write_text(MODELS.format(folder=made))
    return made


@pytest.fixture(scope="module")
def expected(folder: Path) -> np.ndarray:
    with open_file(folder / "p.h5") as file:
        found: np.ndarray = file["probability"][...]
    return found


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Serving]:
    made = Serving(folder / "models.toml")
    yield made
    job = made.stop()
    assert job.status == 75, job.err


def tensor(module: Any, images: np.ndarray, **options: Any) -> Any:
    made = module.InferInput("image", images.shape, "FP32")
    made.set_data_from_numpy(images.astype(np.float32), **options)
    return made


def close(found: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.as_numpy("probability"), expected, rtol=1e-5, atol=1e-6)


def test_http(server: Serving, expected: np.ndarray) -> None:
    with http_client.InferenceServerClient(server.http, concurrency=4) as client:
        assert client.is_server_live() and client.is_server_ready()
        assert client.is_model_ready("cnn") and client.is_model_ready("single", "3")
        assert client.get_server_metadata()["name"] == "mpidl"
        metadata = client.get_model_metadata("single")
        assert metadata["versions"] == ["3", "7"]
        assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 10, 10]}]
        assert client.get_model_config("cnn")["max_batch_size"] == 16
        for binary in (True, False):
            outputs = [http_client.InferRequestedOutput("probability", binary_data=binary)]
            given = tensor(http_client, IMAGES, binary_data=binary)
            close(client.infer("cnn", [given], outputs=outputs), expected)
        given = tensor(http_client, IMAGES)
        found = client.infer("cnn", [given], request_compression_algorithm="gzip", request_id="i")
        close(found, expected)
        assert found.get_response()["id"] == "i"
        np.testing.assert_array_equal(found.as_numpy("label"), expected.argmax(axis=1))
        later = [client.async_infer("cnn", [tensor(http_client, IMAGES[k : k + 2])])
                 for k in range(6)]  # fmt: skip
        for k, one in enumerate(later):
            close(one.get_result(), expected[k : k + 2])
        assert len(client.get_model_repository_index()) == 3
        stats = client.get_inference_statistics("cnn")["model_stats"][0]
        assert stats["inference_count"] >= 36
        with pytest.raises(InferenceServerException, match="unexpected shape"):
            client.infer("cnn", [tensor(http_client, IMAGES[:, :9])])


def test_grpc(server: Serving, expected: np.ndarray) -> None:
    with grpc_client.InferenceServerClient(server.grpc) as client:
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("cnn")
        assert client.get_model_metadata("cnn").platform == "mpidl"
        assert client.get_model_config("cnn").config.max_batch_size == 16
        given = tensor(grpc_client, IMAGES)
        close(client.infer("cnn", [given], priority=1, timeout=10_000_000), expected)
        one = client.infer("single", [tensor(grpc_client, IMAGES[:1])], model_version="7")
        close(one, expected[:1])
        with pytest.raises(InferenceServerException, match="batch-size must be 1 to 1") as caught:
            client.infer("single", [given])
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        with pytest.raises(InferenceServerException, match="UNIMPLEMENTED"):
            client.get_system_shared_memory_status()
        done: queue.Queue[Any] = queue.Queue()
        client.async_infer("cnn", [given], lambda result, error: done.put((result, error)))
        result, error = done.get(timeout=30)
        assert error is None
        close(result, expected)
        client.start_stream(lambda result, error: done.put((result, error)))
        for k in range(5):
            given = tensor(grpc_client, IMAGES[k : k + 1])
            client.async_stream_infer("cnn", [given], request_id=str(k))
        for k in range(5):
            result, error = done.get(timeout=30)
            assert error is None and result.get_response().id == str(k)
            close(result, expected[k : k + 1])
        client.async_stream_infer("none", [given])
        assert "unknown model" in str(done.get(timeout=30)[1])
        client.stop_stream()
        assert client.get_inference_statistics("single").model_stats[1].execution_count == 1
        client.unload_model("single")
        assert not client.is_model_ready("single")
        client.load_model("single")
        assert client.is_model_ready("single", "3")


def test_clients_of_asyncio(server: Serving, expected: np.ndarray) -> None:
    async def call() -> None:
        for module, address in ((http_aio, server.http), (grpc_aio, server.grpc)):
            plain = http_client if module is http_aio else grpc_client
            async with module.InferenceServerClient(address) as client:
                calls = [client.infer("cnn", [tensor(plain, IMAGES[k : k + 1])]) for k in range(8)]
                for k, found in enumerate(await asyncio.gather(*calls)):
                    close(found, expected[k : k + 1])

    asyncio.run(call())


def run_examples(block: int, server: Serving, replaced: dict[str, str]) -> list[str]:
    """What the calls of curl in a block of the docs print."""
    text = re.findall(r"```sh\n(curl.*?)```", DOCS.read_text(), re.DOTALL)[block]
    for old, new in ({"localhost:8000": server.http} | replaced).items():
        text = text.replace(old, new)
    lines = ["curl" + part for part in text.removeprefix("curl").split("\ncurl")]
    return [
        subprocess.run(shlex.split(line), check=True, capture_output=True, text=True).stdout
        for line in lines
    ]


def test_the_examples_of_the_docs(server: Serving) -> None:
    data = json.dumps(IMAGES[:1].tolist())
    replaced = {"[1, 2, 2]": "[1, 10, 10]", "[0, 17, 255, 3]": data}
    answers = run_examples(0, server, replaced)
    assert answers[0] == "200\n"
    assert len(json.loads(answers[2])["outputs"]) == 2
    assert "nv_inference_request_success" in answers[4]
    assert all("error" not in answer for answer in answers)


def test_broken_connections_touch_nobody(server: Serving, expected: np.ndarray) -> None:
    host, port = server.http.split(":")
    head = b"POST /v2/models/cnn/infer HTTP/1.1\r\nHost: a\r\n"
    for content in (
        b"\x00\xff" * 50,
        head + b"Content-Length: 1000\r\n\r\n{",
        head + b"Content-Length: 99999999999\r\n\r\n",
        head + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n{\r\n" * 20,
        head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    ):
        for address in (("127.0.0.1", int(port)), ("127.0.0.1", int(server.grpc.split(":")[1]))):
            with socket.create_connection(address, timeout=10) as client:
                client.sendall(content)
    with http_client.InferenceServerClient(server.http) as client:
        close(client.infer("cnn", [tensor(http_client, IMAGES)]), expected)
    assert host == "127.0.0.1"


def test_one_rank_serves_and_drains_under_load(folder: Path, expected: np.ndarray) -> None:
    made = Serving(folder / "run", ranks=1)
    done: queue.Queue[Any] = queue.Queue()
    with grpc_client.InferenceServerClient(made.grpc) as client:
        for _ in range(200):
            given = tensor(grpc_client, IMAGES)
            client.async_infer("run", [given], lambda result, error: done.put((result, error)))
        close(done.get(timeout=30)[0], expected)
        job = made.stop()
        answered = 1
        for _ in range(199):
            result, error = done.get(timeout=30)
            if error is None:
                close(result, expected)
                answered += 1
            else:
                assert "UNAVAILABLE" in str(error) or "CANCELLED" in str(error), error
    assert job.status == 75, job.err
    assert answered > 1


def test_it_does_not_listen_for_everybody(folder: Path) -> None:
    job = mpidl(2, "serve", str(folder / "models.toml"), "--host", "0.0.0.0")
    assert job.status == 1 and "--identity" in job.err
    job = mpidl(2, "serve", str(folder / "nothing"), "--http-port", "0", "--grpc-port", "0")
    assert job.status == 1 and "no checkpoint found" in job.err


def test_a_rank_that_dies_is_replaced_by_the_others(folder: Path, expected: np.ndarray) -> None:
    made = Serving(folder / "models.toml", "--with-ft", "ulfm", ranks=3)
    done: queue.Queue[Any] = queue.Queue()
    with grpc_client.InferenceServerClient(made.grpc) as client:
        for number in range(400):
            if number == 100:
                os.kill(made.ranks[1], signal.SIGKILL)
            client.async_infer(
                "cnn",
                [tensor(grpc_client, IMAGES)],
                lambda result, error: done.put((result, error)),
            )
            time.sleep(0.001)
        for _ in range(400):
            result, error = done.get(timeout=30)
            if error is None:
                close(result, expected)
            else:
                assert "UNAVAILABLE" in str(error), error
        close(client.infer("cnn", [tensor(grpc_client, IMAGES)]), expected)
        assert client.is_server_ready()
    os.kill(made.ranks[0], signal.SIGTERM)
    finish(made.process)
