"""A server without sockets, MPI or models: its ranks are answered by the test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from mpidl.serving.dispatch import Dispatcher
from mpidl.serving.http import Application
from mpidl.serving.link import Lost, Received
from mpidl.serving.messages import Buffer, Head, Kind, Loaded, pack, pack_object, split, unpack
from mpidl.serving.repository import Repository
from mpidl.serving.server import Server
from mpidl.serving.settings import ModelSettings, ServerSettings, Settings
from mpidl.serving.tensors import TensorSpec

INPUT = TensorSpec("x", "FP32", (2,))
OUTPUT = TensorSpec("sum", "FP32", ())
ABOUT = Loaded((INPUT,), (OUTPUT,), "digest", "file.h5", "regression", 0, (), 8)


class FakeLink:
    """Ranks that add the two numbers of a sample.

    Attributes:
        held: Batches that were sent, with their ranks, while `hold` is set.
        batches: Rows of all batches.
    """

    def __init__(self, ranks: int = 1) -> None:
        self.ranks = list(range(1, ranks + 1))
        self.hold = False
        self.held: list[tuple[int, Buffer]] = []
        self.batches: list[int] = []
        self.unloaded: list[int] = []
        self.whole = True
        self.closed = False

    def start(self, received: Received, lost: Lost) -> None:
        self.received, self.lost = received, lost

    def send(self, rank: int, message: Buffer) -> None:
        head, _ = unpack(message)
        if head.kind == Kind.BATCH:
            self.batches.append(head.rows)
            if self.hold:
                self.held.append((rank, message))
                return
        self.answer(rank, message)

    def answer(self, rank: int, message: Buffer) -> None:
        head, body = unpack(message)
        done = Head(Kind.DONE, head.handle, head.number, head.rows, input=1, infer=10, output=1)
        if head.kind == Kind.LOAD:
            self.received(rank, pack_object(done, ABOUT))
        elif head.kind == Kind.UNLOAD:
            self.unloaded.append(head.handle)
            self.received(rank, pack(done))
        else:
            (x,) = split(body, [INPUT], head.rows)
            self.received(rank, pack(done, [x.sum(axis=1)]))

    def release(self) -> None:
        held, self.held = self.held, []
        for rank, message in held:
            self.answer(rank, message)

    def forget(self, rank: int) -> None:
        self.whole = False

    def close(self) -> None:
        self.closed = True


class Made:
    """A server with the model "m", and what it is made of."""

    def __init__(self, folder: Path, link: FakeLink, **options: Any) -> None:
        (folder / "m.h5").touch()
        server = options.pop("server", ServerSettings())
        self.model = ModelSettings(path="m.h5", **options)
        self.settings = Settings(server, {"m": self.model}, str(folder))
        self.link = link
        self.dispatcher = Dispatcher(server, link)
        self.repository = Repository(lambda: self.settings, self.dispatcher, "numpy")
        self.server = Server(self.repository, self.dispatcher)
        self.application = Application(self.server)

    async def post(
        self, path: str, body: bytes = b"", method: str = "POST", **headers: str
    ) -> tuple[int, bytes]:
        """Status and body of an answer of the application."""
        chunks = [body[place : place + 1000] for place in range(0, len(body), 1000)] or [b""]
        return await self.send(path, chunks, method, **headers)

    async def send(
        self, path: str, chunks: list[bytes], method: str = "POST", **headers: str
    ) -> tuple[int, bytes]:
        """As `post`, with a body of chunks; the client goes away behind a chunk None."""
        names = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
        scope = {"type": "http", "method": method, "path": path, "headers": names}
        waiting = list(chunks)
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if not waiting:
                await asyncio.Event().wait()
            chunk = waiting.pop(0)
            if chunk is None:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": chunk, "more_body": bool(waiting)}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self.application(scope, receive, send)
        if not sent:
            return 0, b""
        return sent[0]["status"], sent[1]["body"]

    async def infer(self, *rows: tuple[float, float], **parameters: Any) -> tuple[int, bytes]:
        """Ask for the sums of some samples."""
        import msgspec

        tensor = {"name": "x", "datatype": "FP32", "shape": [len(rows), 2], "data": rows}
        tree = {"inputs": [tensor], "parameters": parameters}
        return await self.post("/v2/models/m/infer", msgspec.json.encode(tree))


def with_server(
    folder: Path, test: Callable[[Made], Awaitable[None]], *, ranks: int = 1, **options: Any
) -> None:
    """Run a test beside a server."""

    async def run() -> None:
        made = Made(folder, FakeLink(ranks), **options)
        try:
            await made.repository.load("m")
            async with asyncio.timeout(20):
                await test(made)
            assert made.server.pending_bytes == 0
        finally:
            made.dispatcher.close()

    asyncio.run(run())


def rows_of(count: int) -> np.ndarray:
    return np.arange(2 * count, dtype=np.float32).reshape(count, 2)
