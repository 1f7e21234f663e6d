"""How a client says who it is, and finds out that the server is the right one."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ssl
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mpidl.errors import SecurityError
from mpidl.extras import load_extra


@dataclass(frozen=True)
class Login:
    """What a client shows to servers of its site.

    Attributes:
        identity: Name in the folder of keys, or a folder; "": no certificate.
        token_file: With a token, of mode 0600; None: no token.
    """

    identity: str = ""
    token_file: Path | None = None

    @cached_property
    def headers(self) -> dict[str, str]:
        """Of every request.

        Raises:
            SecurityError: Others could read the token.
        """
        if self.token_file is None:
            return {}
        load_extra("cryptography", "asking with a token")
        from mpidl.security.keystore import read_private

        content = read_private(self.token_file, 16 << 10)
        return {"Authorization": f"Bearer {content.decode('ascii', 'replace').strip()}"}

    @cached_property
    def context(self) -> ssl.SSLContext:
        """Of TLS.

        Raises:
            MpidlError: The site's root or the identity cannot be used.
        """
        load_extra("cryptography", "asking a server with a certificate")
        from mpidl.security import keystore
        from mpidl.security.identity import Trust, named_folder
        from mpidl.serving.tls import client_context

        if not self.identity:
            return client_context(Trust.load(), None, None)
        folder = named_folder(self.identity)
        passphrase = keystore.passphrase_of(folder / "tls.pem", str(folder))
        return client_context(Trust.load(), folder, passphrase)


class PinnedConnection(http.client.HTTPSConnection):
    """A connection to the one server whose certificate is known.

    Args:
        host: Of the server.
        port: Of REST.
        timeout: Seconds without a byte.
        context: Of TLS.
        fingerprint: SHA-256 of the server's certificate.
    """

    def __init__(
        self, host: str, port: int, timeout: float, context: ssl.SSLContext, fingerprint: str
    ) -> None:
        super().__init__(host, port, timeout=timeout, context=context)
        self._fingerprint = fingerprint

    def connect(self) -> None:
        """Connect, and look at the certificate before anything is sent.

        Raises:
            SecurityError: It is another server.
        """
        super().connect()
        connected: Any = self.sock
        found = hashlib.sha256(connected.getpeercert(True)).hexdigest()
        if not hmac.compare_digest(found, self._fingerprint):
            self.close()
            raise SecurityError(
                "the server has another certificate than its endpoint.json says",
                where=f"https://{self.host}:{self.port}",
                remedy="see which program listens there; nothing was sent to it",
            )
