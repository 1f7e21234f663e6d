"""Clients of a server that say who they are: certificates or tokens, the site's policy, limits.

A client says who it is by a certificate (TLS) or by a token (`Authorization: Bearer ...`). What it
is told where that fails does not depend on the reason; the reason goes to the record.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from mpidl.errors import MpidlError, SecurityError
from mpidl.security import keystore
from mpidl.security.access import SiteFiles
from mpidl.security.certificates import MALFORMED, fingerprint
from mpidl.security.identity import Identity, Trust, load_identity, named_folder
from mpidl.security.policy import Policy
from mpidl.security.subject import Subject
from mpidl.security.tokens import TokenVerifier
from mpidl.serving.access import Door, Peer, Record
from mpidl.serving.errors import Forbidden, TooMany, Unauthenticated, Unavailable
from mpidl.serving.limits import Lockout, RateLimit, Recent
from mpidl.serving.settings import SecuritySettings
from mpidl.serving.tls import server_context, server_credentials

SCHEME = "bearer "
MOST_TOKEN = 16 << 10  # characters


class SecuredAccess:
    """Certificates and tokens of a site, and its policy.

    Args:
        identity: Of the server; its name is the audience of tokens.
        site: Whom the site believes, and its policy.
        settings: What clients show, and limits.
        record: Told what was refused: name of the event and fields.
        clock: Seconds.

    Raises:
        MpidlError: The site's files or its policy are not right.
    """

    is_open = False

    def __init__(
        self,
        identity: Identity,
        site: SiteFiles,
        settings: SecuritySettings,
        record: Record,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.identity = identity
        self.settings = settings
        self._record = record
        self._clock = clock
        self._rates = RateLimit(settings.requests_per_second, settings.burst)
        self._lockout = Lockout(settings.failures, settings.lock_seconds)
        self._known: Recent[Subject] = Recent()
        self._site = site
        self._use(site.load()[0])
        self._trust.verify(identity.tls_chain, "server")

    def _use(self, trust: Trust) -> None:
        self._trust = trust
        self._tokens = TokenVerifier(trust, self.identity.name)
        self._known.clear()

    def _load(self) -> Policy:
        """The site's policy now; where its files have changed, clients are looked at again."""
        try:
            trust, policy = self._site.load()
        except MpidlError as error:
            self._record("access.closed", decision="denied", error=str(error)[:500])
            what = "the server cannot tell now who may ask"
            raise Unavailable(what, remedy="tell its administrator") from None
        if trust is not self._trust:
            self._use(trust)
        return policy

    # --- who ---
    def admit(self, peer: Peer) -> Subject:
        """See `Access`."""
        now = self._clock()
        if self._lockout.is_locked(peer.address, now):
            raise TooMany("too many failures to say who you are", remedy="wait")
        try:
            subject = self._identify(peer)
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

    def _identify(self, peer: Peer) -> Subject:
        self._load()
        token = _read_token(peer.authorization)
        if token is not None and self.settings.clients != "certificates":
            return self._tokens.verify(token)
        if peer.certificate is not None and self.settings.clients != "tokens":
            return self._identify_certificate(peer.certificate)
        raise SecurityError("shows neither a certificate nor a token that the server takes")

    def _identify_certificate(self, der: bytes) -> Subject:
        """Whom a certificate names; one that was accepted is believed until it may not be valid."""
        key, now = hashlib.sha256(der).hexdigest(), datetime.now(UTC)
        known = self._known.get(key)
        if known is not None and known.expires is not None:
            until = min(known.expires, self._trust.revocations.until)
            if now <= until:
                return known
        subject = _verify(self._trust, der)
        self._known.set(key, subject)
        return subject

    # --- what ---
    def may(self, subject: Subject | None, right: str, name: str = "") -> bool:
        """See `Access`."""
        assert subject is not None
        try:
            return self._load().check(subject, right, name).allowed
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


def _verify(trust: Trust, der: bytes) -> Subject:
    """Whom a certificate names."""
    try:
        certificate = x509.load_der_x509_certificate(der)
    except MALFORMED as error:
        raise SecurityError("a malformed certificate") from error
    return trust.verify((certificate,), "login")


def open_secured(settings: SecuritySettings, record: Record) -> Door:
    """How clients come in that have to say who they are.

    Args:
        settings: With the identity of the server.
        record: See `SecuredAccess`.

    Raises:
        MpidlError: The identity, the site's files or its policy are not right.
    """
    folder = named_folder(settings.identity)
    passphrase = keystore.passphrase_of(folder / "key.pem", str(folder))
    identity, site = load_identity(folder, passphrase), SiteFiles()
    if identity.tls_key is None:
        remedy = "have it issued anew: 'mpidl keys'"
        raise SecurityError("has no key for TLS", where=str(folder), remedy=remedy)
    access, trust = SecuredAccess(identity, site, settings, record), site.load()[0]
    context = server_context(trust, settings.clients, folder, passphrase)
    credentials = server_credentials(identity, trust, settings.clients)
    token_file = str(Path(settings.token_file).absolute()) if settings.token_file else ""
    return Door(access, context, credentials, fingerprint(identity.tls_chain[0]), token_file)
