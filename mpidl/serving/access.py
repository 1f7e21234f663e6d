"""Who may ask a server for what: certificates or tokens, the site's policy, limits.

A client says who it is by a certificate (TLS) or by a token (`Authorization: Bearer ...`). What it
is told where that fails does not depend on the reason; the reason goes to the record.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mpidl.errors import MpidlError, SecurityError, notice
from mpidl.serving.errors import Forbidden, TooMany, Unauthenticated
from mpidl.serving.limits import Lockout, RateLimit, Recent
from mpidl.serving.settings import SecuritySettings

if TYPE_CHECKING:
    from mpidl.security.identity import Identity, Trust
    from mpidl.security.policy import Policy
    from mpidl.security.subject import Subject

SCHEME = "bearer "
MOST_TOKEN = 16 << 10  # characters
RENEW = 30.0  # seconds after which a certificate or token is looked at again
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
    """What the server asks of every request."""

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

    def admit(self, peer: Peer) -> None:
        """See `Access`."""
        return

    def may(self, subject: Subject | None, right: str, name: str = "") -> bool:
        """See `Access`."""
        return True

    def require(self, subject: Subject | None, right: str, name: str = "") -> None:
        """See `Access`."""


@dataclass
class _Known:
    """A subject, and until when it need not be looked at again."""

    subject: Subject
    until: float


class SecuredAccess:
    """Certificates and tokens of a site, and its policy.

    Args:
        identity: Of the server; its name is the audience of tokens.
        settings: What clients show, and limits.
        record: Told what was refused: name of the event and fields.
        clock: Seconds.

    Raises:
        MpidlError: The site's files or its policy are not right.
    """

    def __init__(
        self,
        identity: Identity,
        settings: SecuritySettings,
        record: Record,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from mpidl.security.identity import Trust

        self.identity = identity
        self.settings = settings
        self._record = record
        self._clock = clock
        self._rates = RateLimit(settings.requests_per_second, settings.burst)
        self._lockout = Lockout(settings.failures, settings.lock_seconds)
        self._known: Recent[_Known] = Recent()
        trust = Trust.load()
        trust.verify(identity.tls_chain or identity.chain, "server")
        self._use(trust)

    def _use(self, trust: Trust) -> None:
        from mpidl.security.signed_policy import load_policy
        from mpidl.security.tokens import TokenVerifier

        self.trust = trust
        self.policy: Policy = load_policy(trust)
        self._tokens = TokenVerifier(trust, self.identity.name)
        self._stamps = _stamps()
        self._known.clear()

    def refresh(self) -> None:
        """Read what the site has changed: revocations, the policy. Errors leave the old ones."""
        from mpidl.security.identity import Trust

        stamps = _stamps()
        if stamps == self._stamps:
            return
        self._stamps = stamps  # what is wrong is said once
        try:
            self._use(Trust.load())
        except MpidlError as error:
            notice(f"the site's files have changed, but cannot be used: {error}", "error")
            self._record("access.not_refreshed", decision="denied", error=str(error)[:500])

    # --- who ---
    def admit(self, peer: Peer) -> Subject:
        """See `Access`."""
        now = self._clock()
        if self._lockout.is_locked(peer.address, now):
            raise TooMany("too many failures to say who you are", remedy="wait")
        try:
            subject = self._identify(peer, now)
        except SecurityError as error:
            locked = self._lockout.fail(peer.address, now)
            self._record(
                "access.refused", decision="denied", address=peer.address, error=error.what[:500]
            )
            if locked:
                self._record("access.locked", decision="denied", address=peer.address)
            raise Unauthenticated(
                "the server does not know who you are",
                remedy="show a certificate or a token of its site that is valid now",
            ) from None
        if not self._rates.take(str(subject), now):
            rate = self.settings.requests_per_second
            raise TooMany(f"more than {rate:g} requests a second", remedy="wait")
        return subject

    def _identify(self, peer: Peer, now: float) -> Subject:
        token = _read_token(peer.authorization)
        if token is not None and self.settings.clients != "certificates":
            return self._remember(token, now, lambda: self._tokens.verify(token))
        if peer.certificate is not None and self.settings.clients != "tokens":
            der = peer.certificate
            return self._remember(der, now, lambda: self._verify(der))
        raise SecurityError("shows neither a certificate nor a token that the server takes")

    def _verify(self, der: bytes) -> Subject:
        from cryptography import x509

        from mpidl.security.certificates import MALFORMED

        try:
            certificate = x509.load_der_x509_certificate(der)
        except MALFORMED as error:
            raise SecurityError("a malformed certificate") from error
        return self.trust.verify((certificate,), "login")

    def _remember(self, shown: bytes | str, now: float, verify: Callable[[], Subject]) -> Subject:
        """What was verified a moment ago is believed."""
        content = shown if isinstance(shown, bytes) else shown.encode("utf-8", "surrogatepass")
        key = hashlib.sha256(content).hexdigest()
        known = self._known.get(key)
        if known is not None and now < known.until and not _has_expired(known.subject):
            return known.subject
        subject = verify()
        self._known.set(key, _Known(subject, now + RENEW))
        return subject

    # --- what ---
    def may(self, subject: Subject | None, right: str, name: str = "") -> bool:
        """See `Access`."""
        assert subject is not None
        try:
            return self.policy.check(subject, right, name).allowed
        except SecurityError:
            return False  # a name that no policy can speak of

    def require(self, subject: Subject | None, right: str, name: str = "") -> None:
        """See `Access`."""
        if not self.may(subject, right, name):
            self._record(
                "access.denied", decision="denied", subject=str(subject), right=right, object=name
            )
            raise Forbidden(
                f"you may not {right} {name}".rstrip(),
                remedy="ask the administrator of the site to grant it",
            )


def _read_token(header: str | None) -> str | None:
    """The token in a header."""
    if header is None or len(header) > MOST_TOKEN or not header.lower().startswith(SCHEME):
        return None
    return header[len(SCHEME) :].strip()


def _has_expired(subject: Subject) -> bool:
    return subject.expires is not None and time.time() > subject.expires.timestamp()


def _stamps() -> tuple[Any, ...]:
    """What tells the site's files from changed ones."""
    from mpidl.security.keystore import site_folder

    names = ("root.pem", "revoked.crl", "policy.toml", "policy.toml.sig")
    return tuple(_stamp(site_folder() / name) for name in names)


def _stamp(path: Path) -> Any:
    try:
        found = path.stat()
    except OSError as error:
        return error.errno
    return found.st_mtime_ns, found.st_ino, found.st_size


def open_access(settings: SecuritySettings, record: Record) -> OpenAccess | SecuredAccess:
    """The access of a server.

    Args:
        settings: Of the server; without an identity it is open.
        record: See `SecuredAccess`.

    Raises:
        MpidlError: The identity, the site's files or its policy are not right.
    """
    if not settings.identity:
        return OpenAccess()
    from mpidl.extras import load_extra

    load_extra("cryptography", "serving with certificates")
    from mpidl.security.identity import key_folder, load_identity

    folder = Path(settings.identity)
    folder = folder if len(folder.parts) > 1 else key_folder(settings.identity)
    return SecuredAccess(load_identity(folder), settings, record)
