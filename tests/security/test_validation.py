"""Every rule of a path of certificates, by an attack that breaks it alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from mpidl.errors import ConfigError, SecurityError
from mpidl.security.certificates import (
    SKEW,
    Issuer,
    Wanted,
    dump_chain,
    general_names,
    load_chain,
    make_root,
)
from mpidl.security.names import PURPOSES, RULES, WORD, Name, check_name, parse_uri
from mpidl.security.revocation import load_list, make_list
from mpidl.security.validation import check_path, check_root
from tests.security.attacks import ATTACKS, EVE, HOUR, JOB, PUBLIC, SITE, by_ada, by_root
from tests.security.site import Site, flips, forge, now

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
    assert trust.verify(chain, "login", now()).name == "ada"


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


@pytest.mark.parametrize("kind", ["certificate", "list"])
def test_a_signature_has_no_spare_bits(site: Site, kind: str) -> None:
    """Where its last bits are 0, a library takes it as one of fewer bits, too."""
    root, spoiled = site.authority.root, False
    for number in range(40):
        if kind == "certificate":
            made = by_root(site)[0].public_bytes(Encoding.DER)
        else:
            pem = make_list(root, site.authority.key, number, {}, HOUR)
            made = x509.load_pem_x509_crl(pem).public_bytes(Encoding.DER)
        if made[-1] & 1 == 0:
            changed = made[:-65] + b"\x01" + made[-64:]
            spoiled = True
            with pytest.raises(SecurityError, match="was changed"):
                if kind == "certificate":
                    chain = [x509.load_der_x509_certificate(changed)]
                    check_path(chain, root, "login", datetime.now(UTC))
                else:
                    crl = x509.load_der_x509_crl(changed)
                    load_list(crl.public_bytes(Encoding.PEM), root, "file")
    assert spoiled


def test_no_bit_of_its_content_can_change(site: Site) -> None:
    """As it stands in messages, where no text is around it."""
    trust, der = site.trust(), site.identity("ada").chain[0].public_bytes(Encoding.DER)
    for changed in flips(der):
        try:
            chain = [x509.load_der_x509_certificate(changed)]
        except (ValueError, x509.InvalidVersion):
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


WORDS = st.from_regex(WORD, fullmatch=True).filter(lambda word: ".." not in word)


@given(site=WORDS, kind=st.sampled_from(sorted(RULES)), name=WORDS, submitter=WORDS)
def test_names_come_back(site: str, kind: Any, name: str, submitter: str) -> None:
    made = check_name(
        site, kind, "" if kind == "site" else name, submitter if kind == "job" else ""
    )
    assert parse_uri(made.uri) == made
    assert parse_uri(made.uri + "/") is None and parse_uri(made.uri.upper()) is None


@given(text=st.text() | st.from_regex(r"spiffe://[a-z./-]{0,30}", fullmatch=True))
def test_uris_have_one_spelling(text: str) -> None:
    found = parse_uri(text)
    assert found is None or found.uri == text


def test_every_kind_has_rules() -> None:
    assert all(rules.usual <= rules.longest for rules in RULES.values())
    assert RULES["job"].purposes == RULES["submit"].purposes
    assert not RULES["job"].purposes & {"login", "server", "tokens"}
