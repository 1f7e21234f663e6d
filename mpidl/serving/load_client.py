"""Clients for measuring a server, over any of its protocols."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from mpidl.errors import ConfigError
from mpidl.registry import Registry
from mpidl.serving import endpoint
from mpidl.serving.client import Address
from mpidl.serving.query import choose_model
from mpidl.serving.tensors import TensorSpec, check_datatype

MOST_BYTES = 1 << 28  # of an input: sizes come from a server, which may be any program
Specs = tuple[TensorSpec, ...]


class Connection(Protocol):
    """One client; it connects when it sends."""

    async def send(self) -> str:
        """Send the request: `load.OK`, or what went wrong in one word."""

    async def close(self) -> None:
        """Hang up."""


class Questions(Protocol):
    """Asks about models."""

    def models(self) -> list[str]:
        """See `Client.models`."""

    def tensors(self, name: str) -> tuple[Specs, Specs]:
        """See `Client.tensors`."""

    def close(self) -> None:
        """Hang up."""


class Transport(Protocol):
    """How load is made over a protocol."""

    PORT: int

    def ask(self, address: Address, timeout: float) -> Questions:
        """A client for questions; seconds for an answer."""

    def encode(self, address: Address, model: str, inputs: Mapping[str, NDArray[Any]]) -> bytes:
        """An inference request."""

    def connect(self, address: Address, message: bytes, timeout: float) -> Connection:
        """A client that sends `message`; seconds for each answer."""


PROTOCOLS: Registry[Transport] = Registry(
    "protocol",
    "--protocol",
    {"rest": "mpidl.serving.load_rest:Rest", "grpc": "mpidl.serving.load_grpc:Grpc"},
)


def read_address(text: str, protocol: str) -> Address:
    """The address in `host:port` or `http://host:port`, or of what is served in a folder.

    Args:
        text: As the user wrote it.
        protocol: In `PROTOCOLS`.

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
        return Address(found.target, found.grpc_port if protocol == "grpc" else found.http_port)
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    schemes = ("http", "grpc") if protocol == "grpc" else ("http",)
    if parts.scheme not in schemes or not host or parts.path not in ("", "/") or parts.query:
        raise ConfigError(
            f"{text[:200]!r} is no address of a server",
            where="mpidl bench serve",
            remedy="name host and port, such as 127.0.0.1:8000, or the run folder that is served",
        )
    return Address(host, port or PROTOCOLS[protocol].PORT)


def make_infer(
    protocol: str, address: Address, model: str, rows: int, seed: int, timeout: float
) -> bytes:
    """An inference request with random samples of the shape that the server names.

    Args:
        protocol: In `PROTOCOLS`.
        address: Of the server.
        model: Its name; empty: the only one.
        rows: Samples.
        seed: Of the samples.
        timeout: Seconds for each question to the server.

    Raises:
        MpidlError: The server cannot be reached, or has no such model.
    """
    transport = PROTOCOLS[protocol]
    with closing(transport.ask(address, timeout)) as questions:
        name = choose_model([] if model else questions.models(), model or None)
        inputs, _ = questions.tensors(name)
    return transport.encode(address, name, random_inputs(inputs, rows, seed, f"model {name!r}"))


def random_inputs(specs: Specs, rows: int, seed: int, where: str) -> dict[str, NDArray[Any]]:
    """Samples: real numbers in [0, 1), whole ones 0 or 1, which every vocabulary has.

    Args:
        specs: What the model takes; sizes of -1 become 1.
        rows: Samples.
        seed: Equal seeds, equal samples.
        where: For messages.

    Raises:
        ConfigError: An input takes no numbers.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, NDArray[Any]] = {}
    for one in specs:
        dtype = check_datatype(one.name, one.datatype)
        if dtype.kind not in "fiu":
            raise ConfigError(
                f"input {one.name[:80]!r} is {one.datatype}",
                where=where,
                remedy="measure a model whose inputs are numbers",
            )
        shape = (rows, *(max(1, size) for size in one.shape))
        if math.prod(shape) * dtype.itemsize > MOST_BYTES:
            raise ConfigError(
                f"an input {one.name[:80]!r} of shape {list(shape)[:20]} has more than "
                f"{MOST_BYTES >> 20} MiB",
                where=where,
                remedy="lower --batch",
            )
        values = rng.random(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        found[one.name] = values.astype(dtype)
    return found
