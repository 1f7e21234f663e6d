"""Short-lived tokens for clients of a server: JSON Web Tokens (RFC 7519), signed with Ed25519.

A token names a subject, the one audience that it is for, roles to which it is limited, and a short
time. Its signer's certificates travel in it and must be for "tokens"; so a certificate of a person
or a job makes none. A token's identifier is a number as those of certificates, so that the site's
list of revoked certificates revokes tokens too. Which rights a role has is said by the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from mpidl.errors import ConfigError, SecurityError
from mpidl.security import jws
from mpidl.security.certificates import SKEW
from mpidl.security.identity import Identity, Trust
from mpidl.security.subject import Subject

TYPE = "mpidl+jwt"
LONGEST = timedelta(hours=24)
MOST_ROLES = 16
MOST_KNOWN = 1024  # accepted tokens that are kept
WHERE = "token"
RENEW = "ask for a new token ('mpidl keys token')"

Word = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?\Z")]
Seconds = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]


class Claims(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a token says; all of it is required.

    Attributes:
        iss: The signer, as "service:portal".
        sub: Whom it names.
        aud: The server that it is for.
        roles: To which it is limited.
        iat: When it was made, in seconds since 1970.
        exp: Until when it is valid.
        jti: Its number, in hexadecimal.
    """

    iss: Annotated[str, msgspec.Meta(max_length=128)]
    sub: Word
    aud: Word
    roles: Annotated[tuple[Word, ...], msgspec.Meta(min_length=1, max_length=MOST_ROLES)]
    iat: Seconds
    exp: Seconds
    jti: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{40}\Z")]


def make_token(
    signer: Identity,
    subject: str,
    audience: str,
    roles: Sequence[str],
    lifetime: timedelta,
    at: datetime | None = None,
) -> str:
    """Make a token.

    Args:
        signer: Who vouches for it; its certificate must be for "tokens", which verifiers check.
        subject: Whom it names.
        audience: The one server that it is for.
        roles: To which it is limited.
        lifetime: From `at` on.
        at: When (default: now).

    Raises:
        ConfigError: A name, a role or the lifetime is impossible.
    """
    start = int((at or datetime.now(UTC)).timestamp())
    if not timedelta(seconds=1) <= lifetime <= LONGEST:
        raise ConfigError(
            f"a token cannot be valid for {lifetime}", remedy=f"choose at most {LONGEST}"
        )
    claims = {
        "iss": f"{signer.kind}:{signer.name}",
        "sub": subject,
        "aud": audience,
        "roles": list(roles),
        "iat": start,
        "exp": start + int(lifetime.total_seconds()),
        "jti": f"{x509.random_serial_number():040x}",
    }
    try:
        content = msgspec.json.encode(msgspec.convert(claims, Claims))
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"no such token is possible: {error}",
            remedy="use small letters, digits, '.', '-', '_' in names, and 1 to 16 roles",
        ) from error
    return jws.sign(TYPE, content, signer.key, signer.chain)


@dataclass(frozen=True)
class Known:
    """A token that was accepted once.

    Attributes:
        subject: Whom it names.
        claims: What it says.
        until: When the first of its signer's certificates expires.
    """

    subject: Subject
    claims: Claims
    until: datetime


@dataclass(frozen=True)
class TokenVerifier:
    """Tells whom tokens name; make a new one for a new `Trust`.

    A client sends its token with every request, so that those that were accepted are kept: then
    only time can make them invalid.

    Attributes:
        trust: The site's root and its revocations.
        audience: The name of this server.
        known: Accepted tokens, by their text.
    """

    trust: Trust
    audience: str
    known: dict[str | bytes, Known] = field(default_factory=dict, repr=False, compare=False)

    def verify(self, text: str | bytes, at: datetime | None = None) -> Subject:
        """Whom a token names.

        Args:
            text: From outside; nothing is assumed of it.
            at: When (default: now).

        Raises:
            SecurityError: It is not valid. A server answers all reasons with the same words.
        """
        now = at or datetime.now(UTC)
        found = self.known.get(text)
        if found is None or now > found.until or now > self.trust.revocations.until:
            found = self._verify(text, now)
            if len(self.known) >= MOST_KNOWN:
                self.known.clear()
            self.known[text] = found
        _check_time(found.claims, now)
        return found.subject

    def _verify(self, text: str | bytes, now: datetime) -> Known:
        message = jws.parse(text, TYPE, WHERE)
        chain = message.chain()
        signer = self.trust.verify(chain, "tokens", now=now)
        key = chain[0].public_key()
        assert isinstance(key, Ed25519PublicKey)  # `Trust.verify` has seen to it
        try:
            claims = msgspec.json.decode(message.verify(key), type=Claims)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise jws.malformed(WHERE) from error
        self._check(claims, signer)
        _check_time(claims, now)
        expires = datetime.fromtimestamp(claims.exp, UTC)
        issuer = f"{signer.kind}:{signer.name}"
        subject = Subject(
            signer.site, "token", claims.sub, claims.jti, expires, issuer=issuer, roles=claims.roles
        )
        ends = [certificate.not_valid_after_utc for certificate in (*chain, self.trust.root)]
        return Known(subject, claims, min(ends))

    def _check(self, claims: Claims, signer: Subject) -> None:
        if claims.iss != f"{signer.kind}:{signer.name}":
            raise _refuse("names another signer than its certificate")
        if claims.aud != self.audience:
            raise _refuse(f"is for {claims.aud}, not for {self.audience}")
        if claims.exp <= claims.iat or claims.exp - claims.iat > LONGEST.total_seconds():
            raise _refuse("is valid for longer than a token may be")
        if int(claims.jti, 16) in self.trust.revocations.serials:
            raise _refuse("was revoked")


def _check_time(claims: Claims, now: datetime) -> None:
    skew, seconds = SKEW.total_seconds(), now.timestamp()
    if seconds < claims.iat - skew:
        raise _refuse("is not valid yet")
    if seconds > claims.exp + skew:
        raise _refuse("has expired")


def _refuse(reason: str) -> SecurityError:
    return SecurityError(reason, where=WHERE, remedy=RENEW)
