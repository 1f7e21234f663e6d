"""A small client of the protocol over REST, for measuring: one connection, binary tensors."""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import msgspec
import numpy as np
from numpy.typing import NDArray

from mpidl.errors import ConfigError, PlatformError
from mpidl.serving import endpoint
from mpidl.serving.client import HEADER_LENGTH, encode_request
from mpidl.serving.tensors import check_datatype

T = TypeVar("T")
MOST_HEAD, MOST_BODY = 1 << 16, 1 << 28  # bytes of an answer
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: |\r)")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,12})[ \t]*\r", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close[ \t]*\r", re.IGNORECASE)


class Address(msgspec.Struct, frozen=True):
    """Where a server listens.

    Attributes:
        host: Name or address.
        port: Of REST.
    """

    host: str
    port: int

    @property
    def text(self) -> str:
        """As HTTP has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Malformed(Exception):
    """The answer is no HTTP with a Content-Length."""


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]


class _Metadata(msgspec.Struct):
    inputs: list[_Tensor]


class _Entry(msgspec.Struct):
    name: str
    state: str = ""


def read_address(text: str) -> Address:
    """The address in `host:port` or `http://host:port`, or of what is served in a folder.

    Raises:
        ConfigError: It is none, or no server runs there.
    """
    if text and Path(text).exists():
        found = endpoint.read(endpoint.place_of(Path(text)))
        if found.target is None:
            what, remedy = f"the server can be reached on {found.host} only", found.tunnel
            raise ConfigError(
                what, where=text, remedy=f"{remedy}, then name 127.0.0.1 and the port"
            )
        return Address(found.target, found.http_port)
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme != "http" or not host or parts.path not in ("", "/") or parts.query:
        raise ConfigError(
            f"{text[:200]!r} is no address of a server",
            where="mpidl bench serve",
            remedy="name host and port, such as 127.0.0.1:8000, or the run folder that is served",
        )
    return Address(host, port or 8000)


class Connection:
    """Sends one request after the other, and connects again where the server has hung up.

    Args:
        address: Of the server.
        timeout: Seconds for one request.
    """

    def __init__(self, address: Address, timeout: float) -> None:
        self._address = address
        self._timeout = timeout
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def request(self, message: bytes) -> tuple[int, bytes]:
        """Status and body of the answer.

        Raises:
            OSError: There is no connection (TimeoutError: no answer in time).
            Malformed: The answer cannot be read.
        """
        try:
            async with asyncio.timeout(self._timeout):
                return await self._exchange(message)
        except BaseException:
            self.close()  # what comes later must not answer the next request
            raise

    async def send(self, message: bytes) -> str:
        """What has become of a request: the status, or `connection`, `malformed` or `timeout`."""
        try:
            status, _ = await self.request(message)
        except TimeoutError:
            return "timeout"
        except OSError:
            return "connection"
        except Malformed:
            return "malformed"
        return str(status)

    def close(self) -> None:
        """Hang up."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def _exchange(self, message: bytes) -> tuple[int, bytes]:
        if self._reader is None or self._writer is None or self._reader.at_eof():
            self.close()
            self._reader, self._writer = await asyncio.open_connection(
                self._address.host, self._address.port, limit=MOST_HEAD
            )
        self._writer.write(message)
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
            found, length = _STATUS.match(head), _LENGTH.search(head)
            if found is None or length is None or int(length[1]) > MOST_BODY:
                raise Malformed
            body = await self._reader.readexactly(int(length[1]))
        except asyncio.IncompleteReadError as error:
            raise ConnectionResetError("the server has hung up") from error
        except asyncio.LimitOverrunError as error:
            raise Malformed from error
        if _CLOSE.search(head):
            self.close()
        return int(found[1]), body


def make_message(
    method: str, path: str, address: Address, body: bytes = b"", head: int = 0
) -> bytes:
    """A whole request of HTTP.

    Args:
        method: GET or POST.
        path: What is asked for.
        address: Of the server.
        body: Behind the header.
        head: Bytes of JSON in front of tensors in the body; 0: no tensors.
    """
    lines = [f"{method} {path} HTTP/1.1", f"Host: {address.text}"]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    elif method == "POST":
        lines += ["Content-Length: 0"]
    if head:
        lines[2] = "Content-Type: application/octet-stream"
        lines.append(f"{HEADER_LENGTH}: {head}")
    return "\r\n".join([*lines, "", ""]).encode() + body


async def make_infer(address: Address, model: str, rows: int, seed: int, timeout: float) -> bytes:
    """An inference request with random samples of the shape that the server names.

    Real numbers lie in [0, 1); whole ones are 0 or 1, which every vocabulary has.

    Args:
        address: Of the server.
        model: Its name; empty: the only one.
        rows: Samples.
        seed: Of the samples.
        timeout: Seconds for each question to the server.

    Raises:
        MpidlError: The server cannot be reached, or has no such model.
    """
    connection = Connection(address, timeout)
    with contextlib.closing(connection):
        model = model or await _only_model(connection, address)
        path = f"/v2/models/{quote(model, safe='')}"
        metadata = await _ask(connection, address, "GET", path, _Metadata)
    rng = np.random.default_rng(seed)
    inputs: dict[str, NDArray[Any]] = {}
    for one in metadata.inputs:
        dtype = check_datatype(one.name, one.datatype)
        if dtype.kind not in "fiu":
            raise ConfigError(
                f"input {one.name[:80]!r} is {one.datatype}",
                where=f"model {model!r}",
                remedy="measure a model whose inputs are numbers",
            )
        shape = (rows, *(max(1, size) for size in one.shape[1:]))
        values = rng.random(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        inputs[one.name] = values.astype(dtype)
    return make_message("POST", f"{path}/infer", address, *encode_request(inputs))


async def _only_model(connection: Connection, address: Address) -> str:
    entries = await _ask(connection, address, "POST", "/v2/repository/index", list[_Entry])
    names = list(dict.fromkeys(entry.name for entry in entries))
    if len(names) != 1:
        raise ConfigError(
            f"the server has {len(names)} models: {', '.join(names[:20])}",
            where=address.text,
            remedy="choose one with --model",
        )
    return names[0]


async def _ask(
    connection: Connection, address: Address, method: str, path: str, kind: type[T]
) -> T:
    """A JSON answer of the server.

    Raises:
        PlatformError: The server cannot be reached, refuses, or answers something else.
    """
    try:
        status, body = await connection.request(make_message(method, path, address))
        if status == 200:
            return msgspec.json.decode(body, type=kind)
        what = f"answers {path} with {status}: {body[:200].decode(errors='replace')}"
    except OSError as error:
        what = f"cannot be reached: {error.strerror or error or 'no answer in time'}"
    except (Malformed, msgspec.MsgspecError, RecursionError):
        what = f"does not answer {path} as the Open Inference Protocol says"
    raise PlatformError(
        what,
        where=f"the server at {address.text}",
        remedy="start it with mpidl serve, and name the address that it prints",
    )
