"""Load over REST: a small client for measuring, one connection, binary tensors."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from mpidl.serving.client import (
    HEADER_LENGTH,
    Address,
    Client,
    encode_request,
    model_path,
)
from mpidl.serving.load import OK

MOST_HEAD, MOST_BODY = 1 << 16, 1 << 28  # bytes of an answer
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: |\r)")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,12})[ \t]*\r", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close[ \t]*\r", re.IGNORECASE)


class Malformed(Exception):
    """The answer is no HTTP with a Content-Length."""


class Connection:
    """Sends one request after the other, and connects again where the server has hung up.

    Args:
        address: Of the server.
        message: The request, of `encode`.
        timeout: Seconds for each.
    """

    def __init__(self, address: Address, message: bytes, timeout: float) -> None:
        self._address = address
        self._message = message
        self._timeout = timeout
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def request(self) -> tuple[int, bytes]:
        """Status and body of the answer.

        Raises:
            OSError: There is no connection (TimeoutError: no answer in time).
            Malformed: The answer cannot be read.
        """
        try:
            async with asyncio.timeout(self._timeout):
                return await self._exchange()
        except BaseException:
            self._hang_up()  # what comes later must not answer the next request
            raise

    async def send(self) -> str:
        """What has become of a request: OK, the status, `connection`, `malformed` or `timeout`."""
        try:
            status, _ = await self.request()
        except TimeoutError:
            return "timeout"
        except OSError:
            return "connection"
        except Malformed:
            return "malformed"
        return OK if status == 200 else str(status)

    async def close(self) -> None:
        """Hang up."""
        self._hang_up()

    def _hang_up(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def _exchange(self) -> tuple[int, bytes]:
        if self._reader is None or self._writer is None or self._reader.at_eof():
            self._hang_up()
            self._reader, self._writer = await asyncio.open_connection(
                self._address.host, self._address.port, limit=MOST_HEAD
            )
        self._writer.write(self._message)
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
            self._hang_up()
        return int(found[1]), body


class Rest:
    """How load is made over REST."""

    PORT = 8000

    @staticmethod
    def ask(address: Address, timeout: float) -> Client:
        """A client for questions about models."""
        return Client(address.host, address.port, timeout)

    @staticmethod
    def encode(address: Address, model: str, inputs: Mapping[str, NDArray[Any]]) -> bytes:
        """A whole inference request of HTTP."""
        body, head = encode_request(inputs)
        lines = [
            f"POST {model_path(model)}/infer HTTP/1.1",
            f"Host: {address.text}",
            "Content-Type: application/octet-stream",
            f"Content-Length: {len(body)}",
            f"{HEADER_LENGTH}: {head}",
        ]
        return "\r\n".join([*lines, "", ""]).encode() + body

    connect = Connection
