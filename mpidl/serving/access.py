"""What the server asks of every request: who it is from, and whether they may ask that.

Without settings everybody may; `mpidl.serving.secured` has the rest, and what it needs.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mpidl.extras import load_extra
from mpidl.serving.settings import SecuritySettings

if TYPE_CHECKING:
    from mpidl.security.subject import Subject

Record = Callable[..., None]


@dataclass(frozen=True)
class Peer:
    """Who asks, as far as the connection tells.

    Attributes:
        address: Of the client.
        certificate: Of the client, in DER, whose key it has; None: it has shown none.
        authorization: The header of that name; None: there is none.
    """

    address: str
    certificate: bytes | None = None
    authorization: str | None = None


class Access(Protocol):
    """What the server asks of every request.

    Attributes:
        is_open: Whether everybody may do everything.
    """

    is_open: bool

    def admit(self, peer: Peer) -> Subject | None:
        """Whom a request is from.

        Raises:
            ServingError: It does not say so, or asks too often.
        """

    def may(self, subject: Subject | None, right: str, name: str = "") -> bool:
        """Whether a subject has a right (to a model)."""

    def require(self, subject: Subject | None, right: str, name: str = "") -> None:
        """As `may`, but raises `Forbidden`."""


class OpenAccess:
    """Everybody may do everything: for a server that this machine alone can reach."""

    is_open = True

    def admit(self, peer: Peer) -> None:
        """See `Access`."""
        return

    def may(self, subject: Subject | None, right: str, name: str = "") -> bool:
        """See `Access`."""
        return True

    def require(self, subject: Subject | None, right: str, name: str = "") -> None:
        """See `Access`."""


def sees(access: Access, subject: Subject | None, name: str) -> bool:
    """Whether a subject may know of a model."""
    return access.may(subject, "infer", name) or access.may(subject, "load", name)


@dataclass(frozen=True)
class Door:
    """How clients come in.

    Attributes:
        access: What they are asked.
        context: Of TLS over REST; None: there is none.
        credentials: Of TLS over gRPC; None: there is none.
        fingerprint: SHA-256 of the server's certificate, or "".
        token_file: Of a token that clients may show, or "".
    """

    access: Access
    context: ssl.SSLContext | None = None
    credentials: Any = None
    fingerprint: str = ""
    token_file: str = ""


def open_door(settings: SecuritySettings, record: Record) -> Door:
    """How clients of a server come in.

    Args:
        settings: Of the server; without an identity it is open.
        record: Told what is refused: name of the event, and fields.

    Raises:
        MpidlError: The identity, the site's files or its policy are not right.
    """
    if not settings.identity:
        return Door(OpenAccess())
    load_extra("cryptography", "serving with certificates")
    from mpidl.serving.secured import open_secured

    return open_secured(settings, record)
