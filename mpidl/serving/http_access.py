"""Who a request over REST is from, and whether it may ask for what it asks for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mpidl.extras import load_extra
from mpidl.serving.access import Access, Peer, sees

if TYPE_CHECKING:
    from mpidl.security.subject import Subject

CERTIFICATE = "mpidl.certificate"  # in the state of a connection


def find_header(scope: dict[str, Any], name: bytes) -> bytes | None:
    """A header of a request; None: it has none of that name.

    Args:
        scope: Of ASGI.
        name: In small letters.
    """
    return next((value for key, value in scope["headers"] if key == name), None)


def admit(access: Access, scope: dict[str, Any], parts: list[str]) -> Subject | None:
    """Whom a request is from, if it may ask for what it asks for; before its body is read.

    Args:
        access: Of the server.
        scope: Of ASGI; `Protocol` has put the client's certificate there.
        parts: Of the path.

    Raises:
        ServingError: It may not.
    """
    if parts[:2] == ["v2", "health"]:
        return None
    header = find_header(scope, b"authorization")
    client = scope.get("client") or ("",)
    certificate = scope.get("state", {}).get(CERTIFICATE)
    subject = access.admit(
        Peer(client[0], certificate, None if header is None else header.decode("latin-1"))
    )
    match parts:
        case ["metrics"] | ["v2", "models", "stats"] | ["v2", "models", _, *_, "stats"]:
            access.require(subject, "metrics")
        case ["v2", "models", name, *_, ("infer" | "generate" | "generate_stream")]:
            access.require(subject, "infer", name)
        case ["v2", "repository", "models", name, *_]:
            access.require(subject, "load", name)
        case ["v2", "models", name, *_]:
            if not sees(access, subject, name):
                access.require(subject, "infer", name)
    return subject


def make_protocol() -> type[asyncio.Protocol]:
    """uvicorn's protocol, which also tells the application the certificate of its client."""
    base: Any = load_extra("uvicorn.protocols.http.httptools_impl", "serving over REST")

    class Protocol(base.HttpToolsProtocol):  # type: ignore[misc]
        """One connection."""

        app_state: dict[str, Any]

        def connection_made(self, transport: Any) -> None:
            """The handshake is over."""
            found = transport.get_extra_info("ssl_object")
            if found is not None:
                self.app_state = {**self.app_state, CERTIFICATE: found.getpeercert(True)}
            super().connection_made(transport)

    return Protocol
