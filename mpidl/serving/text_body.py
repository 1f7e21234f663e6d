"""Requests for texts and their answers in JSON, and as server-sent events.

Source: Triton's "Generate Extension" and the Open Inference Protocol's "Open Inference API for text
generation" (text_input, parameters; text_output, done).
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

import msgspec

from mpidl.errors import ConfigError
from mpidl.generation import Sampling
from mpidl.serving.errors import InvalidRequest, ServingError
from mpidl.serving.write import TextPiece, TextRequest

MOST_STOPS = 16
Stop = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class _Parameters(msgspec.Struct, forbid_unknown_fields=True):
    """Names as other servers of texts have them."""

    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 100
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: Stop | Annotated[list[Stop], msgspec.Meta(max_length=MOST_STOPS)] = []
    timeout: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)] = 0
    stream: bool = False


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    text_input: str
    id: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    parameters: _Parameters = msgspec.field(default_factory=_Parameters)


_BODY: msgspec.json.Decoder[_Body] = msgspec.json.Decoder(_Body)


def parse_text(body: bytes | bytearray, model: str, version: str) -> TextRequest:
    """The request in a body.

    Args:
        body: JSON.
        model: Name, from the address.
        version: From the address.

    Raises:
        InvalidRequest: It is malformed.
    """
    try:
        found = _BODY.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"failed to parse the request JSON: {str(error)[:300]}") from error
    own = found.parameters
    seed = secrets.randbits(32) if own.seed is None else own.seed
    try:
        sampling = Sampling(own.temperature, own.top_k, own.top_p, seed)
    except ConfigError as error:
        raise InvalidRequest(error.what, where=f"the parameter {error.where!r}") from error
    stop = (own.stop,) if isinstance(own.stop, str) else tuple(own.stop)
    return TextRequest(
        model, version, found.id, found.text_input, own.max_tokens, sampling, stop, own.timeout
    )


def format_piece(piece: TextPiece) -> bytes:
    """A part of a text, or a whole one."""
    found: dict[str, Any] = {"id": piece.id} if piece.id else {}
    found |= {
        "model_name": piece.model,
        "model_version": piece.version,
        "text_output": piece.text,
        "done": bool(piece.reason),
    }
    if piece.reason:
        found["details"] = {
            "finish_reason": piece.reason,
            "tokens": piece.tokens,
            "seed": piece.seed,
        }
    return msgspec.json.encode(found)


async def collect(pieces: AsyncGenerator[TextPiece, None]) -> TextPiece:
    """A whole text.

    Raises:
        ServingError: It cannot be written.
    """
    text = ""
    async with aclosing(pieces):
        async for piece in pieces:
            text += piece.text
    return msgspec.structs.replace(piece, text=text)


async def format_events(
    first: TextPiece, others: AsyncGenerator[TextPiece, None]
) -> AsyncGenerator[bytes, None]:
    """A text as server-sent events; an error is the last one.

    Args:
        first: Its first part.
        others: Those that follow.
    """
    async with aclosing(others):
        yield _event(format_piece(first))
        try:
            async for piece in others:
                yield _event(format_piece(piece))
        except ServingError as error:
            yield _event(msgspec.json.encode({"error": error.text}))


def _event(content: bytes) -> bytes:
    return b"data: " + content + b"\n\n"
