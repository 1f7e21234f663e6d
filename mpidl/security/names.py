"""Names of people, services, nodes and jobs, and what a certificate of each may be used for.

A name is a URI as in SPIFFE (https://spiffe.io, X.509-SVID): `spiffe://SITE/person/ada`; of a job
`spiffe://SITE/job/SUBMITTER/ID`; of a site's root `spiffe://SITE`. Purposes are extended key
usages (RFC 5280, 4.2.1.12): those of the standard where other programs check them, and object
identifiers below a UUID (ITU-T X.667: no registration) for what only mpidl knows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from mpidl.errors import ConfigError, nearest

Kind = Literal["person", "service", "node", "job", "submit", "site"]
Purpose = Literal["login", "server", "sign", "job-rank", "seal", "tokens"]

ARC = "2.25.126522205916278197752290253048797462529"
PURPOSES: dict[Purpose, ObjectIdentifier] = {
    "login": ExtendedKeyUsageOID.CLIENT_AUTH,
    "server": ExtendedKeyUsageOID.SERVER_AUTH,
    "sign": ExtendedKeyUsageOID.CODE_SIGNING,
    "job-rank": ObjectIdentifier(f"{ARC}.1"),
    "seal": ObjectIdentifier(f"{ARC}.2"),
    "tokens": ObjectIdentifier(f"{ARC}.3"),
}


@dataclass(frozen=True)
class Rules:
    """What holds for certificates of one kind.

    Attributes:
        purposes: What they may be used for at most.
        longest: Time from start to end at most.
        usual: Time from start to end if nothing else is said.
    """

    purposes: frozenset[Purpose]
    longest: timedelta
    usual: timedelta


def _rules(purposes: set[Purpose], longest: timedelta, usual: timedelta) -> Rules:
    return Rules(frozenset(purposes), longest, usual)


YEAR = timedelta(days=366)
# A `submit` certificate issues those of a person's jobs, and can do nothing else
RULES: dict[Kind, Rules] = {
    "site": _rules(set(), 20 * YEAR, 10 * YEAR),
    "person": _rules({"login", "sign", "seal", "tokens"}, 2 * YEAR, YEAR),
    "service": _rules({"login", "server", "sign", "seal", "tokens"}, 2 * YEAR, YEAR),
    "node": _rules({"server"}, 2 * YEAR, YEAR),
    "submit": _rules({"job-rank", "sign", "seal"}, YEAR, YEAR),
    "job": _rules({"job-rank", "sign", "seal"}, timedelta(days=14), timedelta(days=1)),
}

_WORD = r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?"
WORD = re.compile(_WORD)
_URI = re.compile(rf"spiffe://({_WORD})(?:/([a-z]+)/({_WORD})(?:/({_WORD}))?)?")


@dataclass(frozen=True)
class Name:
    """Who a certificate is for.

    Attributes:
        site: Name of the site (a trust domain), such as "cluster.example.org".
        kind: What it names.
        name: Of a job: the identifier the scheduler or the submitter gave it.
        submitter: Of a job: the person or service that submitted it; else empty.
    """

    site: str
    kind: Kind
    name: str = ""
    submitter: str = ""

    @property
    def uri(self) -> str:
        """The name as a URI."""
        if self.kind == "site":
            return f"spiffe://{self.site}"
        owner = f"{self.submitter}/" if self.kind == "job" else ""
        return f"spiffe://{self.site}/{self.kind}/{owner}{self.name}"

    @property
    def distinguished(self) -> x509.Name:
        """The name as X.509 has it: organization, units (kind, submitter), common name."""
        parts = [
            (NameOID.ORGANIZATION_NAME, self.site),
            (NameOID.ORGANIZATIONAL_UNIT_NAME, self.kind),
        ]
        parts += [(NameOID.ORGANIZATIONAL_UNIT_NAME, self.submitter)] if self.submitter else []
        parts += [(NameOID.COMMON_NAME, self.name)] if self.name else []
        return x509.Name([x509.NameAttribute(key, value) for key, value in parts])

    def __str__(self) -> str:
        owner = f" of {self.submitter}" if self.submitter else ""
        return f"{self.kind}:{self.name or self.site}{owner}"


def parse_uri(uri: str) -> Name | None:
    """The name that a URI is; None where it is none.

    Args:
        uri: From a certificate; nothing is assumed of it.
    """
    found = _URI.fullmatch(uri) if len(uri) < 512 else None
    if found is None:
        return None
    site, word, first, second = found.groups()
    if word is None:
        return make_name(site, "site")
    kind = next((known for known in RULES if known == word), None)
    if kind is None:
        return None
    name, submitter = (first, "") if second is None else (second, first)
    return make_name(site, kind, name, submitter)


def make_name(site: str, kind: Kind, name: str = "", submitter: str = "") -> Name | None:
    """A name; None where a part of it is malformed."""
    words = [word for word in (site, name, submitter) if word]
    good = all(WORD.fullmatch(word) and ".." not in word for word in words)
    complete = bool(site) and bool(name) == (kind != "site") and bool(submitter) == (kind == "job")
    return Name(site, kind, name, submitter) if good and complete else None


def check_name(site: str, kind: Kind, name: str = "", submitter: str = "") -> Name:
    """As `make_name`, for what a user has written.

    Raises:
        ConfigError: A part of it is malformed.
    """
    made = make_name(site, kind, name, submitter)
    if made is None:
        words = [word for word in (site, name, submitter) if word]
        raise ConfigError(
            f"{kind} {' '.join(repr(word[:80]) for word in words)}: no such name is possible",
            remedy="use 1 to 64 small letters, digits, '.', '-', '_'; first and last a letter or "
            "digit, no two dots in a row",
        )
    return made


def check_kind(kind: str) -> Kind:
    """A kind by name.

    Raises:
        ConfigError: There is none of that name.
    """
    for known in RULES:
        if kind == known:
            return known
    raise ConfigError(f"there is no kind of name {kind[:80]!r}", remedy=nearest(kind, RULES))
