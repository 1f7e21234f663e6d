"""Texts that clients ask for: prompts to tokens, tokens to parts of a text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from mpidl.generation import Sampling
from mpidl.generation.text import Coder, Stream
from mpidl.serving.errors import InvalidRequest, Unavailable
from mpidl.serving.messages import Start
from mpidl.serving.repository import Version
from mpidl.serving.server import Server, counted


class TextRequest(msgspec.Struct):
    """A request for a text.

    Attributes:
        model: Name.
        version: Number, or "" for the latest.
        id: Of the client; comes back in the answer.
        prompt: What is gone on with.
        max_tokens: Tokens to be written at most.
        sampling: How they are chosen.
        stop: Texts that end the text.
        timeout: Microseconds to the first token; 0: as the settings say.
    """

    model: str
    version: str
    id: str
    prompt: str
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    timeout: int = 0


class TextPiece(msgspec.Struct):
    """A part of a text.

    Attributes:
        model: Name.
        version: That writes it.
        id: Of the client.
        text: What has been written since the last part.
        reason: Why the text ends here: "length" or "stop"; "": it goes on.
        tokens: That were written so far.
        seed: That writes the same text again.
    """

    model: str
    version: str
    id: str
    text: str
    reason: str
    tokens: int
    seed: int


async def write(server: Server, request: TextRequest) -> AsyncGenerator[TextPiece, None]:
    """A text, part by part.

    Args:
        server: The server.
        request: What is wanted.

    Raises:
        ServingError: It cannot be written.
    """
    if server.draining:
        raise Unavailable("the server is stopping", remedy="ask another one")
    version = server.repository.find(request.model, request.version)
    start = time.monotonic_ns()
    with counted(version, start):
        prompt, coder = encode_prompt(version, request.prompt)
        version.users += 1
        try:
            pieces = _write(version, request, prompt, Stream(coder, request.stop))
            async with aclosing(pieces):
                async for piece in pieces:
                    yield piece
        except (asyncio.CancelledError, GeneratorExit):
            version.stats.cancel += 1
            raise
        finally:
            version.users -= 1
            server.dispatcher.tell_idle()
    version.stats.add_text(time.monotonic_ns() - start)


async def _write(
    version: Version, request: TextRequest, prompt: tuple[int, ...], stream: Stream
) -> AsyncGenerator[TextPiece, None]:
    assert version.generation is not None
    own, begin, count = request.sampling, time.monotonic_ns(), 0
    wanted = Start(
        0, prompt, (), request.max_tokens, own.temperature, own.top_k, own.top_p, own.seed
    )
    names = (version.model, version.number, request.id)
    steps = version.generation.write(wanted, find_timeout(version, request.timeout))
    async with aclosing(steps):
        async for tokens, reason in steps:
            if not count:
                version.stats.first_token.add(time.monotonic_ns() - begin)
            text = ""
            for token in tokens:
                if not stream.stopped:
                    text += stream.add(token)
                    count += 1
            text += stream.rest() if reason else ""
            end = "stop" if stream.stopped else reason
            if text or end:
                yield TextPiece(*names, text, end, count, own.seed)
            if end:
                return


def encode_prompt(version: Version, prompt: str) -> tuple[tuple[int, ...], Coder]:
    """The tokens of a prompt, and what decodes those that follow.

    Raises:
        InvalidRequest: The model writes no texts, or not behind this one.
    """
    model, coder, most = version.model, version.coder, version.about.context
    if not most:
        raise InvalidRequest(f"model {model!r} writes no texts", remedy="use infer")
    if coder is None:
        what = f"the server does not know the tokenizer of model {model!r}"
        raise InvalidRequest(what, remedy=f"set models.{model}.tokenizer in models.toml")
    tokens = tuple(coder.encode(prompt))
    if not 1 <= len(tokens) <= most:
        raise InvalidRequest(
            f"the text_input has {len(tokens)} tokens, but model {model!r} takes 1 to {most}"
        )
    return tokens, coder


def find_timeout(version: Version, own: int) -> float | None:
    """Seconds that a request may wait; None: any.

    Args:
        version: Of the model.
        own: Microseconds that the request says; 0: none.
    """
    default = version.settings.default_timeout_microseconds
    own = own if version.settings.allow_timeout_override else 0
    least = min(own, default) if own and default else own or default
    return least * 1e-6 if least else None
