"""Chains of certificates that break one rule each, and the words with which they are refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID

from mpidl.security.certificates import Issuer, general_names, key_usage, make_root
from mpidl.security.names import PURPOSES, Name
from tests.security.site import Site, forge, now

HOUR = timedelta(hours=1)
SITE = "cluster.example.org"
KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key()
P256 = ec.generate_private_key(ec.SECP256R1()).public_key()
EVE = Name(SITE, "person", "eve")
JOB = Name(SITE, "job", "run-9", "ada")


def by_root(site: Site, name: Name = EVE, **changes: Any) -> list[x509.Certificate]:
    return [forge(site.authority.issuer, name, changes.pop("public", PUBLIC), **changes)]


def by_ada(site: Site, name: Name = JOB, **changes: Any) -> list[x509.Certificate]:
    issuer = site.submit_issuer()
    return [forge(issuer, name, changes.pop("public", PUBLIC), **changes), *issuer.chain]


def two_submitters(site: Site) -> list[x509.Certificate]:
    """Somebody who submits jobs makes another one who does."""
    issuer, other = site.submit_issuer(), Ed25519PrivateKey.generate()
    second = forge(issuer, Name(SITE, "submit", "ada"), other.public_key())
    third = forge(Issuer((second,), other), JOB, PUBLIC)
    return [third, second, *issuer.chain]


def by_leaf(site: Site, name: str, victim: Name) -> list[x509.Certificate]:
    """Somebody whose certificate is no issuer's issues one."""
    identity = site.identity(name)
    return [forge(Issuer(identity.chain, identity.key), victim, PUBLIC), *identity.chain]


def by_false_root(site: Site) -> list[x509.Certificate]:
    """A root of the same name, with another key."""
    key = Ed25519PrivateKey.generate()
    root = make_root(Name(SITE, "site"), key, 100 * HOUR)
    return [forge(Issuer((root,), key), EVE, PUBLIC)]


def false_signature(site: Site) -> list[x509.Certificate]:
    """All is as it should be, but another key has signed."""
    return by_root(site, signer=Ed25519PrivateKey.generate())


def other_algorithm(site: Site) -> list[x509.Certificate]:
    return by_root(site, signer=ec.generate_private_key(ec.SECP256R1()), hash=hashes.SHA256())


def no_extended(site: Site) -> list[x509.Certificate]:
    return by_root(site, drop=[x509.ExtendedKeyUsage])


CA = x509.BasicConstraints(True, 0)
ISSUES = key_usage(Name(SITE, "submit", "x"), PUBLIC)
ANY = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])
LOGIN = x509.ExtendedKeyUsage([PURPOSES["login"]])
BOTH = x509.SubjectAlternativeName(
    [*general_names(EVE, ()), *general_names(Name(SITE, "person", "ada"), ())]
)
MAIL = x509.SubjectAlternativeName([*general_names(EVE, ()), x509.RFC822Name("eve@example.org")])
HOST = x509.SubjectAlternativeName(general_names(EVE, ["portal.example.org"]))
NOT_OURS = "not issued by this site"
ATTACKS: dict[str, tuple[Callable[[Site], list[x509.Certificate]], str, str]] = {
    "no certificate": (lambda site: [], "login", "0 certificates"),
    "too many": (lambda site: [*by_root(site)] * 5, "login", "5 certificates"),
    "expired": (lambda site: by_root(site, start=now() - 3 * HOUR), "login", "expired at"),
    "not yet valid": (lambda site: by_root(site, start=now() + HOUR), "login", "not valid yet"),
    "lives too long": (
        lambda site: by_root(site, lifetime=1000 * 24 * HOUR),
        "login",
        "lives longer than a person",
    ),
    "a job that lives too long": (
        lambda site: by_ada(site, lifetime=15 * 24 * HOUR),
        "job-rank",
        "lives longer than a job",
    ),
    "a forged root": (by_false_root, "login", NOT_OURS),
    "a forged signature": (false_signature, "login", NOT_OURS),
    "another algorithm": (other_algorithm, "login", "not signed with Ed25519"),
    "another issuer's name": (
        lambda site: by_root(site, issuer_name=EVE.distinguished),
        "login",
        NOT_OURS,
    ),
    "another issuer's key": (
        lambda site: by_root(
            site, more=[(x509.AuthorityKeyIdentifier(b"x" * 20, None, None), False)]
        ),
        "login",
        "names another key",
    ),
    "of another site": (
        lambda site: by_root(site, Name("other.example.org", "person", "eve")),
        "login",
        "is of the site other.example.org",
    ),
    "a person issues": (lambda site: by_leaf(site, "bob", EVE), "login", "not allowed to issue"),
    "a job issues": (lambda site: by_leaf(site, "run-7", JOB), "job-rank", "exceeds the length"),
    "a job logs in": (
        lambda site: by_ada(site, more=[(LOGIN, True)]),
        "login",
        "is not for login",
    ),
    "a submitter issues for a person": (
        lambda site: by_ada(site, Name(SITE, "person", "ada"), purposes=["sign"]),
        "sign",
        "for jobs only",
    ),
    "a submitter issues for another's job": (
        lambda site: by_ada(site, Name(SITE, "job", "run-9", "bob")),
        "job-rank",
        "not issued by that job's submitter",
    ),
    "a submitter issues for another site": (
        lambda site: by_ada(site, Name("other.org", "job", "run-9", "ada")),
        "job-rank",
        "is of the site other.org",
    ),
    "the root issues for a job": (
        lambda site: by_root(site, JOB),
        "job-rank",
        "not issued by that job's submitter",
    ),
    "a path too long": (two_submitters, "job-rank", "exceeds the length of path"),
    "a submitter ranks": (
        lambda site: list(site.submit_issuer().chain),
        "job-rank",
        "is an issuer's own",
    ),
    "an issuer's constraints": (
        lambda site: by_root(site, more=[(CA, True)]),
        "login",
        "other basic constraints",
    ),
    "an issuer's key usage": (
        lambda site: by_root(site, more=[(ISSUES, True)]),
        "login",
        "another key usage",
    ),
    "no constraints": (
        lambda site: by_root(site, drop=[x509.BasicConstraints]),
        "login",
        "other basic constraints",
    ),
    "no key usage": (lambda site: by_root(site, drop=[x509.KeyUsage]), "login", "key usage"),
    "no purpose": (no_extended, "login", "lacks an extension"),
    "any purpose": (lambda site: by_root(site, more=[(ANY, True)]), "login", "is not for login"),
    "purposes not critical": (
        lambda site: by_root(site, more=[(LOGIN, False)]),
        "login",
        "should be critical",
    ),
    "an unknown extension": (
        lambda site: by_root(site, more=[(x509.OCSPNoCheck(), False)]),
        "login",
        "unknown extension",
    ),
    "an unknown critical extension": (
        lambda site: by_root(
            site,
            more=[(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\x00"), True)],
        ),
        "login",
        "unknown extension",
    ),
    "no name": (
        lambda site: by_root(site, drop=[x509.SubjectAlternativeName]),
        "login",
        "no name of mpidl",
    ),
    "two names": (lambda site: by_root(site, more=[(BOTH, False)]), "login", "no name of mpidl"),
    "names that differ": (
        lambda site: by_root(site, subject=Name(SITE, "person", "ada").distinguished),
        "login",
        "two that differ",
    ),
    "a mail address": (lambda site: by_root(site, more=[(MAIL, False)]), "login", "may not have"),
    "a person with a host": (
        lambda site: by_root(site, more=[(HOST, False)]),
        "login",
        "may not have",
    ),
    "a name of the wrong form": (
        lambda site: by_root(site, Name(SITE, "person", "../ada")),
        "login",
        "no name of mpidl",
    ),
    "a person who ranks": (
        lambda site: by_root(site, purposes=["job-rank"]),
        "job-rank",
        "is not for job-rank",
    ),
    "a person who serves": (
        lambda site: by_root(site, purposes=["server"]),
        "server",
        "is not for server",
    ),
    "a key that agrees logs in": (
        lambda site: by_root(site, public=X25519PrivateKey.generate().public_key()),
        "login",
        "cannot be used for login",
    ),
    "a key that signs is sealed for": (
        lambda site: by_root(site, purposes=["seal"]),
        "seal",
        "cannot be used for seal",
    ),
    "a key for TLS signs tokens": (
        lambda site: by_root(site, Name(SITE, "service", "eve"), public=P256),
        "tokens",
        "cannot be used for tokens",
    ),
    "a key of another curve logs in": (
        lambda site: by_root(site, public=ec.generate_private_key(ec.SECP384R1()).public_key()),
        "login",
        "cannot be used for login",
    ),
    "a key for TLS in a job": (
        lambda site: by_ada(site, public=P256),
        "job-rank",
        "cannot be used for job-rank",
    ),
    "certificates in another order": (
        lambda site: by_ada(site)[::-1],
        "job-rank",
        NOT_OURS,
    ),
    "the issuer left out": (lambda site: by_ada(site)[:1], "job-rank", NOT_OURS),
}
