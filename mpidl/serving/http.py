"""The protocol over REST: an ASGI application. It parses no body of a request that is too large."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec

from mpidl.errors import wrap
from mpidl.serving.access import sees
from mpidl.serving.errors import InvalidRequest, NotFound, ServingError, TooLarge, Unavailable
from mpidl.serving.http_access import admit, find_header
from mpidl.serving.json_body import format_response, parse
from mpidl.serving.metrics import format_metrics
from mpidl.serving.page import HEADERS, read_file
from mpidl.serving.server import Server
from mpidl.serving.text_body import collect, format_events, format_piece, parse_text
from mpidl.serving.write import write

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
JSON, TEXT = b"application/json", b"text/plain; version=0.0.4; charset=utf-8"
EVENTS = b"text/event-stream; charset=utf-8"
HEADER_LENGTH = b"inference-header-content-length"
T = TypeVar("T")
CODINGS = {b"gzip": 31, b"deflate": 15}  # window bits for zlib


class ClientGone(Exception):
    """The client has closed its connection."""


class Answer(msgspec.Struct):
    """An answer.

    Attributes:
        body: Its bytes.
        status: Of HTTP.
        kind: Content-Type.
        json_size: Bytes of JSON in the body, if others follow.
        headers: Further ones.
        events: Further parts of the body, as they come.
    """

    body: bytes = b""
    status: int = 200
    kind: bytes = JSON
    json_size: int | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    events: AsyncGenerator[bytes, None] | None = None


def _json(value: Any) -> Answer:
    return Answer(msgspec.json.encode(value))


class Application:
    """Answers HTTP requests.

    Args:
        server: The server.
    """

    def __init__(self, server: Server) -> None:
        self.server = server

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """One request (ASGI 3)."""
        if scope["type"] != "http":
            return
        held = _Held(self.server)
        try:
            answer = await self._answer(scope, receive, held)
            limit = self.server.settings.body_timeout
            if answer.events is None:
                async with asyncio.timeout(limit):
                    await _send(send, answer)
            else:
                await until_gone(receive, _send_events(send, answer, limit))
        except (ClientGone, TimeoutError):
            return
        finally:
            held.release()

    async def _answer(self, scope: dict[str, Any], receive: Receive, held: _Held) -> Answer:
        try:
            return await self._route(scope, receive, held)
        except ServingError as error:
            body = msgspec.json.encode({"error": error.text})
            return Answer(body, error.status)
        except (ClientGone, asyncio.CancelledError):
            raise
        except Exception as error:
            text = wrap(error, "answering a request").what
            return Answer(msgspec.json.encode({"error": text}), 500)

    async def _route(self, scope: dict[str, Any], receive: Receive, held: _Held) -> Answer:
        """Find out what is wanted."""
        method, parts = scope["method"], scope["path"].strip("/").split("/")
        if method == "GET" and parts[0] == "ui":
            return _page(scope["path"])
        subject = None if self.server.access.is_open else admit(self.server.access, scope, parts)
        if method == "GET":
            return self._get(parts)
        if method != "POST":
            raise NotFound(f"there is no {method[:20]} {scope['path'][:200]}")
        match parts:
            case ["v2", "models", name, "infer"]:
                return await self._infer(name, "", scope, receive, held)
            case ["v2", "models", name, "versions", version, "infer"]:
                return await self._infer(name, version, scope, receive, held)
            case ["v2", "models", name, ("generate" | "generate_stream") as what]:
                return await self._write(name, "", what, scope, receive, held)
            case [
                "v2",
                "models",
                name,
                "versions",
                version,
                ("generate" | "generate_stream") as what,
            ]:
                return await self._write(name, version, what, scope, receive, held)
            case ["v2", "repository", "index"]:
                body = await held.read(scope, receive)
                ready = _options(body).get("ready") is True
                found, access = self.server.repository.index(ready=ready), self.server.access
                return _json([one for one in found if sees(access, subject, one["name"])])
            case ["v2", "repository", "models", name, ("load" | "unload") as what]:
                body = await held.read(scope, receive)
                if _options(body).get("parameters") not in (None, {}) and what == "load":
                    raise InvalidRequest("a load takes no parameters: change models.toml instead")
                repository = self.server.repository
                await (repository.load(name) if what == "load" else repository.unload(name))
                return Answer()
        raise NotFound(f"there is no POST {scope['path'][:200]}")

    def _get(self, parts: list[str]) -> Answer:
        server = self.server
        match parts:
            case ["v2"]:
                return _json(server.metadata())
            case ["v2", "health", "live"]:
                return Answer()
            case ["v2", "health", "ready"]:
                return Answer(status=200 if server.ready else 503)
            case ["metrics"]:
                return Answer(format_metrics(server).encode(), kind=TEXT)
            case ["v2", "models", "stats"]:
                return _json({"model_stats": server.statistics()})
            case ["v2", "models", name, "versions", version, *rest]:
                return self._get_model(name, version, rest)
            case ["v2", "models", name, *rest]:
                return self._get_model(name, "", rest)
        raise NotFound(f"there is no GET /{'/'.join(parts)[:200]}")

    def _get_model(self, name: str, version: str, rest: list[str]) -> Answer:
        server = self.server
        match rest:
            case []:
                return _json(server.model_metadata(name, version))
            case ["ready"]:
                return Answer(status=200 if server.model_ready(name, version) else 503)
            case ["config"]:
                return _json(server.model_config(name, version))
            case ["stats"]:
                return _json({"model_stats": server.statistics(name, version)})
        raise NotFound(f"a model has no {'/'.join(rest)[:200]!r}")

    async def _infer(
        self, name: str, version: str, scope: dict[str, Any], receive: Receive, held: _Held
    ) -> Answer:
        self.server.repository.find(name, version)  # before anything is read
        body = await held.read(scope, receive)
        request, form = parse(body, _header_size(scope), name, version)
        response = await until_gone(receive, self.server.infer(request))
        text, json_size = format_response(response, form)
        kind = JSON if json_size is None else b"application/octet-stream"
        return Answer(text, kind=kind, json_size=json_size)

    async def _write(
        self,
        name: str,
        version: str,
        what: str,
        scope: dict[str, Any],
        receive: Receive,
        held: _Held,
    ) -> Answer:
        """A text: whole, or part by part where `what` is "generate_stream"."""
        self.server.repository.find(name, version)  # before anything is read
        request = parse_text(await held.read(scope, receive), name, version)
        pieces = write(self.server, request)
        if what == "generate":
            whole = await until_gone(receive, collect(pieces))
            return Answer(format_piece(whole))
        # what is wrong with the request is known before the first part
        first = await until_gone(receive, anext(pieces))
        return Answer(kind=EVENTS, events=format_events(first, pieces))


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of some work, which ends when the client goes away.

    Args:
        receive: Of ASGI; the body has been read.
        work: What to do.

    Raises:
        ClientGone: The client has gone.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(receive())
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        gone.cancel()
        if task.cancel():
            await asyncio.wait((task,))  # it tidies up


class _Held:
    """The body of a request, which counts among the bytes that the server holds."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._size = 0

    def _add(self, size: int) -> None:
        self._server.check_size(self._size + size)
        self._server.reserve(size)
        self._size += size

    def release(self) -> None:
        """The request is answered."""
        self._server.release(self._size)
        self._size = 0

    async def read(self, scope: dict[str, Any], receive: Receive) -> bytearray:
        """All of it, decompressed.

        Raises:
            ServingError: It is too large or too slow, or cannot be decompressed.
            ClientGone: The client has gone.
        """
        length = find_header(scope, b"content-length")
        if length is not None and length.isdigit():
            self._server.check_size(int(length[:20]))
        body = bytearray()
        try:
            async with asyncio.timeout(self._server.settings.body_timeout):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    chunk = message.get("body", b"")
                    self._add(len(chunk))
                    body += chunk
                    more = message.get("more_body", False)
        except TimeoutError as error:
            limit = self._server.settings.body_timeout
            what = f"the request was not complete within {limit:g} s"
            raise Unavailable(what) from error
        coding = find_header(scope, b"content-encoding")
        return body if coding in (None, b"identity") else self._decompress(body, coding)

    def _decompress(self, body: bytearray, coding: bytes | None) -> bytearray:
        if coding not in CODINGS:
            raise InvalidRequest("Content-Encoding must be gzip or deflate")
        most = self._server.settings.max_request_bytes
        machine = zlib.decompressobj(CODINGS[coding])
        try:
            found = machine.decompress(body, most + 1)
        except zlib.error as error:
            raise InvalidRequest(f"the request cannot be decompressed: {error}") from error
        if len(found) > most:
            raise TooLarge(f"the request has more than {most} bytes when it is decompressed")
        if not machine.eof:
            raise InvalidRequest("the compressed request is cut off")
        self._add(len(found))
        return bytearray(found)


def _header_size(scope: dict[str, Any]) -> int | None:
    """Bytes of JSON in front of the tensors."""
    value = find_header(scope, HEADER_LENGTH)
    if value is None:
        return None
    if not value.isdigit() or len(value) > 15:
        raise InvalidRequest("Inference-Header-Content-Length must be a number of bytes")
    return int(value)


def _options(body: bytearray) -> dict[str, Any]:
    """The JSON object of a repository request; it may be missing."""
    if not body.strip():
        return {}
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"failed to parse the request JSON: {str(error)[:300]}") from error


def _page(path: str) -> Answer:
    """A file of the page. Its addresses are relative, so that it works behind a proxy's prefix."""
    if path == "/ui":
        return Answer(status=307, kind=TEXT, headers=((b"location", b"ui/"),))
    found = read_file(path.removeprefix("/ui/"))
    if found is None:
        raise NotFound(f"there is no GET {path[:200]}")
    content, kind = found
    return Answer(content, kind=kind, headers=HEADERS)


async def _send_events(send: Send, answer: Answer, limit: float) -> None:
    """Send a body that comes in parts.

    Args:
        send: Of ASGI.
        answer: It.
        limit: Seconds in which the client must have taken a part.
    """
    assert answer.events is not None
    headers = [(b"content-type", answer.kind), (b"cache-control", b"no-cache")]
    start = {"type": "http.response.start", "status": answer.status, "headers": headers}
    async with aclosing(answer.events) as events, asyncio.timeout(limit) as time_left:
        await send(start)
        async for part in events:
            time_left.reschedule(asyncio.get_running_loop().time() + limit)
            await send({"type": "http.response.body", "body": part, "more_body": True})
            time_left.reschedule(None)
        await send({"type": "http.response.body", "body": b""})


async def _send(send: Send, answer: Answer) -> None:
    headers = [(b"content-type", answer.kind), (b"content-length", b"%d" % len(answer.body))]
    headers += answer.headers
    if answer.json_size is not None:
        headers.append((HEADER_LENGTH, b"%d" % answer.json_size))
    if answer.status in (413, 503):
        headers.append((b"connection", b"close"))  # the rest of the request is not read
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
