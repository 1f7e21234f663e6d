"""Every rule of a path of certificates, by an attack that breaks it alone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from mpidl.errors import ConfigError, SecurityError
from mpidl.security.certificates import (
    SKEW,
    Issuer,
    Wanted,
    dump_chain,
    general_names,
    key_usage,
    load_chain,
    make_root,
)
from mpidl.security.names import PURPOSES, RULES, Name, check_name
from mpidl.security.validation import check_path, check_root
from tests.security.site import NOW, Site, flips, forge

HOUR = timedelta(hours=1)
SITE = "cluster.example.org"
KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key()
P256 = ec.generate_private_key(ec.SECP256R1()).public_key()
EVE = Name(SITE, "person", "eve")
JOB = Name(SITE, "job", "run-9", "ada")


ALLOWED = [
    ("ada", "login"),
    ("ada", "sign"),
    ("portal", "server"),
    ("portal", "login"),
    ("portal", "tokens"),
    ("portal", "sign"),
    ("node7", "server"),
    ("run-7", "job-rank"),
    ("run-7", "sign"),
]


@pytest.mark.parametrize(("name", "purpose"), ALLOWED)
def test_identities_are_what_they_are_issued_for(site: Site, name: str, purpose: Any) -> None:
    identity = site.identity(name)
    subject = site.trust().verify(identity.chain, purpose)
    assert (subject.kind, subject.name, subject.site) == (identity.kind, name, SITE)
    assert subject.submitter == ("ada" if name == "run-7" else "")


@pytest.mark.parametrize("name", ["ada", "portal", "node7", "run-7"])
@pytest.mark.parametrize("purpose", PURPOSES)
def test_and_for_nothing_else(site: Site, name: str, purpose: Any) -> None:
    if (name, purpose) not in ALLOWED:
        with pytest.raises(SecurityError, match=f"is not for {purpose}"):
            site.trust().verify(site.identity(name).chain, purpose)


@pytest.mark.parametrize("name", ["ada", "portal", "run-7"])
def test_sealing_certificates_are_for_sealing_only(site: Site, name: str) -> None:
    chain = site.identity(name).sealing_chain
    assert site.trust().verify(chain, "seal").name == name
    for purpose in set(PURPOSES) - {"seal"}:
        with pytest.raises(SecurityError, match="is not for"):
            site.trust().verify(chain, purpose)


@pytest.mark.parametrize(
    ("name", "purposes"),
    [("ada", {"login"}), ("portal", {"login", "server"}), ("node7", {"server"}), ("run-7", set())],
)
def test_keys_for_tls_are_for_nothing_else(site: Site, name: str, purposes: set[str]) -> None:
    chain = site.identity(name).tls_chain
    for purpose in PURPOSES if chain else ():
        if purpose in purposes:
            assert site.trust().verify(chain, purpose).name == name
        else:
            with pytest.raises(SecurityError, match="is not for"):
                site.trust().verify(chain, purpose)
    assert bool(chain) == bool(purposes)


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
    "expired": (lambda site: by_root(site, start=NOW - 3 * HOUR), "login", "expired at"),
    "not yet valid": (lambda site: by_root(site, start=NOW + HOUR), "login", "not valid yet"),
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


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_refused_each_for_its_reason(site: Site, attack: str) -> None:
    make, purpose, reason = ATTACKS[attack]
    chain = make(site)
    with pytest.raises(SecurityError, match=reason) as caught:
        site.trust().verify(chain, purpose)  # type: ignore[arg-type]
    assert caught.value.remedy


def test_what_is_forged_passes_where_nothing_is_wrong(site: Site) -> None:
    """So that the attacks above fail for their own reason only."""
    assert site.trust().verify(by_root(site), "login").name == "eve"
    assert site.trust().verify(by_ada(site), "job-rank").submitter == "ada"


def test_clocks_may_differ_a_little(site: Site) -> None:
    chain, trust = site.identity("ada").chain, site.trust()
    start, end = chain[0].not_valid_before_utc, chain[0].not_valid_after_utc
    root = site.authority.root
    check_path(chain, root, "login", start - SKEW)
    check_path(chain, root, "login", end + SKEW)
    for when in (start - SKEW - timedelta(seconds=1), end + SKEW + timedelta(seconds=1)):
        with pytest.raises(SecurityError):
            check_path(chain, root, "login", when)
    assert trust.verify(chain, "login", NOW).name == "ada"


def test_a_certificate_is_no_root(site: Site) -> None:
    key = Ed25519PrivateKey.generate()
    own = Issuer((make_root(Name(SITE, "site"), key, HOUR),), key)
    with pytest.raises(SecurityError):
        check_root(site.identity("ada").chain[0])
    submit = forge(own, Name(SITE, "submit", "ada"), PUBLIC)
    with pytest.raises(SecurityError):
        check_root(submit)


@pytest.mark.parametrize("name", ["ada", "run-7"])
def test_no_bit_of_a_certificate_can_change(site: Site, name: str) -> None:
    content, trust = dump_chain(site.identity(name).chain), site.trust()
    assert trust.verify(load_chain(content, "file"), "sign").name == name
    for changed in flips(content):
        with pytest.raises(SecurityError):
            trust.verify(load_chain(changed, "file"), "sign")


def test_no_bit_of_its_content_can_change(site: Site) -> None:
    """As it stands in messages, where no text is around it."""
    trust, der = site.trust(), site.identity("ada").chain[0].public_bytes(Encoding.DER)
    for changed in flips(der):
        try:
            chain = [x509.load_der_x509_certificate(changed)]
        except ValueError:
            continue
        with pytest.raises(SecurityError):
            trust.verify(chain, "sign")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"lifetime": 15 * 24 * HOUR}, "no lifetime"),
        ({"lifetime": -HOUR}, "no lifetime"),
        ({"purposes": ["login"]}, "cannot be for login"),
        ({"purposes": []}, "cannot be for nothing"),
        ({"hosts": ["node7"]}, "has 1 hosts"),
    ],
)
def test_what_would_be_refused_is_not_issued(site: Site, change: dict[str, Any], text: str) -> None:
    fields = {"name": JOB, "key": PUBLIC, "purposes": ["sign"], "lifetime": HOUR} | change
    with pytest.raises(ConfigError, match=text):
        site.submit_issuer().issue(Wanted(**fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["", "-a", "a b", "*.example.org", "A", "a..b", "a" * 300, "ü"])
def test_hosts_are_names_or_addresses(host: str) -> None:
    with pytest.raises(ConfigError):
        general_names(EVE, [host])


@pytest.mark.parametrize("word", ["", "A", "a/b", "..", "a..b", ".a", "a ", "a\n", "ä", "a" * 65])
def test_names_have_one_spelling(word: str) -> None:
    with pytest.raises(ConfigError):
        check_name(SITE, "person", word)


def test_every_kind_has_rules() -> None:
    assert all(rules.usual <= rules.longest for rules in RULES.values())
    assert RULES["job"].purposes == RULES["submit"].purposes
    assert not RULES["job"].purposes & {"login", "server", "tokens"}
    assert datetime.now(UTC) >= NOW
