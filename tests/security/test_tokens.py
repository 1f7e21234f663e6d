"""Tokens: what they say is what is believed, and nothing else is believed."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpidl.errors import ConfigError, SecurityError
from mpidl.security import jws, tokens
from mpidl.security.certificates import SKEW
from mpidl.security.tokens import LONGEST, TYPE, TokenVerifier, make_token
from tests.security.site import Site, flips, now

HOUR = timedelta(hours=1)
MANY = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def token(site: Site, **changes: Any) -> str:
    wanted = {"subject": "lab", "audience": "serve", "roles": ["client"], "lifetime": HOUR}
    wanted |= {"signer": site.identity("portal"), "at": now()} | changes
    return make_token(**wanted)


def verifier(site: Site) -> TokenVerifier:
    return TokenVerifier(site.trust(), "serve")


def refused(site: Site, text: str | bytes, at: datetime | None = None) -> str:
    with pytest.raises(SecurityError) as caught:
        verifier(site).verify(text, at or now())
    assert caught.value.where.startswith(("token", "certificate ", "chain of certificates"))
    return caught.value.what


def test_a_token_says_whom_it_names(site: Site) -> None:
    start = now()
    subject = verifier(site).verify(token(site, at=start), start)
    assert (subject.kind, subject.name, subject.site) == ("token", "lab", "cluster.example.org")
    assert (subject.issuer, subject.roles) == ("service:portal", ("client",))
    assert subject.expires == datetime.fromtimestamp(int(start.timestamp()) + 3600, UTC)
    assert len(subject.serial) == 40
    assert verifier(site).verify(token(site).encode(), now()).name == "lab"


def test_it_is_for_one_audience(site: Site) -> None:
    assert refused(site, token(site, audience="other")) == "is for other, not for serve"


def test_it_expires_and_begins(site: Site) -> None:
    start, second = now(), timedelta(seconds=1)
    text, end = token(site, at=start), start + HOUR + SKEW
    verifier(site).verify(text, end - second)
    assert refused(site, text, end + second) == "has expired"
    assert "is not valid yet" in refused(site, text, start - SKEW - 2 * second)
    assert refused(site, claims(site, iat=int(now().timestamp()) + 300)) == "is not valid yet"


def test_a_token_that_was_accepted_is_not_forever(
    own_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, checked = token(own_site), verifier(own_site)
    first = checked.verify(text, now())
    with monkeypatch.context() as patch:  # nothing is verified again
        patch.setattr(jws, "parse", None)
        assert checked.verify(text, now()) is first
        with pytest.raises(SecurityError, match="has expired"):
            checked.verify(text, now() + 2 * HOUR)
        with pytest.raises(SecurityError, match="is not valid yet"):
            checked.verify(text, now() - HOUR)
    with pytest.raises(SecurityError, match="is stale"):
        checked.verify(text, now() + timedelta(days=40))
    monkeypatch.setattr(tokens, "MOST_KNOWN", 3)
    for _ in range(5):
        checked.verify(token(own_site), now())
    assert len(checked.known) <= 3
    own_site.authority.revoke({int(first.serial, 16)})
    assert refused(own_site, text) == "was revoked"


@pytest.mark.parametrize("lifetime", [LONGEST + HOUR, -HOUR, timedelta(0)])
def test_it_is_short_lived(site: Site, lifetime: timedelta) -> None:
    with pytest.raises(ConfigError, match="cannot be valid"):
        token(site, lifetime=lifetime)
    forged = claims(site, exp=int((now() + lifetime).timestamp()))
    assert refused(site, forged) == "is valid for longer than a token may be"


@pytest.mark.parametrize(
    "change",
    [
        {"roles": []},
        {"roles": ["a"] * 17},
        {"subject": "A b"},
        {"audience": ""},
        {"subject": "a\n"},
    ],
)
def test_impossible_tokens_are_not_made(site: Site, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no such token is possible"):
        token(site, **change)


@pytest.mark.parametrize("name", ["ada", "bob", "run-7", "node7"])
def test_only_who_may_sign_tokens_does(site: Site, name: str) -> None:
    """A person, a job or a node signs one with their own, valid certificate."""
    assert refused(site, token(site, signer=site.identity(name))) == "is not for tokens"


def test_it_can_be_revoked_as_certificates_are(own_site: Site) -> None:
    text, other = token(own_site), token(own_site)
    serial = verifier(own_site).verify(text, now()).serial
    own_site.authority.revoke({int(serial, 16)})
    assert refused(own_site, text) == "was revoked"
    verifier(own_site).verify(other)
    own_site.authority.revoke({own_site.identity("portal").chain[0].serial_number})
    assert refused(own_site, other) == "was revoked"


def claims(site: Site, drop: str = "", **changes: Any) -> str:
    """A token of these claims, well signed by who may sign tokens."""
    portal = site.identity("portal")
    start = int(now().timestamp())
    said = {
        "iss": "service:portal",
        "sub": "lab",
        "aud": "serve",
        "roles": ["client"],
        "iat": start,
        "exp": start + 3600,
        "jti": "0" * 39 + "1",
    } | changes
    said.pop(drop, None)
    return jws.sign(TYPE, json.dumps(said).encode(), portal.key, portal.chain)


@pytest.mark.parametrize("name", ["iss", "sub", "aud", "roles", "iat", "exp", "jti"])
def test_all_claims_are_needed(site: Site, name: str) -> None:
    assert verifier(site).verify(claims(site), now()).name == "lab"
    assert "is malformed" in refused(site, claims(site, drop=name))


@pytest.mark.parametrize(
    "change",
    [
        {"aud": ["serve", "other"]},
        {"aud": None},
        {"sub": "../x"},
        {"sub": ""},
        {"roles": "client"},
        {"roles": []},
        {"roles": ["client"] * 17},
        {"exp": 1e400},
        {"exp": -1},
        {"exp": 1 << 60},
        {"exp": "9999999999"},
        {"jti": "1"},
        {"jti": "g" * 40},
        {"admin": True},
    ],
)
def test_claims_have_types_and_limits(site: Site, change: dict[str, Any]) -> None:
    assert "is malformed" in refused(site, claims(site, **change))


def test_a_signer_speaks_for_itself(site: Site) -> None:
    assert "another signer" in refused(site, claims(site, iss="service:other"))


def encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def test_the_algorithm_is_no_choice_of_the_sender(site: Site) -> None:
    """`none`, and HMAC with the public key as its secret."""
    portal = site.identity("portal")
    head, body, signature = token(site).split(".")
    header = json.loads(base64.urlsafe_b64decode(head + "=="))
    public = portal.chain[0].public_key()
    secret = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
    said = jwt.decode(token(site), options={"verify_signature": False})
    more = {"typ": TYPE, "x5c": header["x5c"]}
    hmac = jwt.encode(said, secret, algorithm="HS256", headers=more)
    none = jwt.encode(said, None, algorithm="none", headers=more)
    for text in (hmac, none, f"{none.rsplit('.', 1)[0]}.{signature}"):
        assert "is malformed" in refused(site, text)
    for alg in ("none", "None", "HS256", "ES256", "RS256", "eddsa", "Ed448", "", None):
        false = encode(json.dumps(header | {"alg": alg}).encode())
        assert "is malformed" in refused(site, f"{false}.{body}.{signature}")


@pytest.mark.parametrize(
    "change",
    [
        {"typ": "JWT"},
        {"typ": "mpidl-request+jwt"},
        {"kid": "../../dev/null"},
        {"jwk": {"kty": "OKP"}},
        {"jku": "https://example.org"},
        {"x5u": "https://example.org"},
        {"crit": ["exp"]},
        {"b64": False},
        {"x5c": []},
        {"x5c": ["AAAA"]},
        {"x5c": ["?"]},
        {"x5c": "AAAA"},
        {"x5c": ["AAAA"] * 5},
    ],
)
def test_headers_say_no_more_than_they_may(site: Site, change: dict[str, Any]) -> None:
    """Well signed, as far as the one goes who sends it."""
    portal = site.identity("portal")
    head, body, _ = token(site).split(".")
    header = json.loads(base64.urlsafe_b64decode(head + "==")) | change
    signed = f"{encode(json.dumps(header).encode())}.{body}"
    text = f"{signed}.{encode(portal.key.sign(signed.encode()))}"
    assert refused(site, text)


def test_another_key_signs(site: Site) -> None:
    """The certificates of who may, and a signature of who may not."""
    portal = site.identity("portal")
    text = token(site)
    body = base64.urlsafe_b64decode(text.split(".")[1] + "==")
    forged = jws.sign(TYPE, body, Ed25519PrivateKey.generate(), portal.chain)
    assert "its signature is wrong" in refused(site, forged)
    head, body_text, _ = text.split(".")
    for false in (
        f"{head}.{body_text}.",
        f"{head}.{body_text}",
        f"{text}.",
        f"{text}=",
        f" {text}",
    ):
        assert "is malformed" in refused(site, false)


def test_no_bit_of_a_token_can_change(site: Site) -> None:
    text, checked = token(site).encode(), verifier(site)
    assert checked.verify(text, now()).name == "lab"
    for changed in flips(text):
        with pytest.raises(SecurityError):
            checked.verify(changed, now())
    tail = jws.MOST_BYTES + 1
    for changed in (text[:-1], text + b"A", text * 2, b"", text.ljust(tail, b"A"), b"." * tail):
        with pytest.raises(SecurityError):
            checked.verify(changed, now())


@MANY
@given(text=st.text(max_size=100) | st.binary(max_size=100))
def test_anything_else_is_refused_with_our_error(site: Site, text: str | bytes) -> None:
    refused(site, text)


@MANY
@given(
    header=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=10,
    ),
    depth=st.integers(0, 3000),
)
def test_so_are_headers_and_claims_of_any_form(site: Site, header: Any, depth: int) -> None:
    said = encode(json.dumps(header).encode())
    nested = encode(b"[" * depth + b"]" * depth)
    good = token(site).split(".")
    for text in (f"{said}.{said}.{good[2]}", f"{nested}.{nested}.{good[2]}"):
        refused(site, text)
    portal = site.identity("portal")
    for content in (json.dumps(header).encode(), b"[" * depth, b"\xff"):
        refused(site, jws.sign(TYPE, content, portal.key, portal.chain))


def test_a_library_reads_our_tokens_and_we_read_its(site: Site) -> None:
    portal = site.identity("portal")
    text = token(site, at=datetime.now(UTC))
    said = jwt.decode(text, portal.chain[0].public_key(), algorithms=["EdDSA"], audience="serve")
    assert (said["sub"], said["iss"], said["roles"]) == ("lab", "service:portal", ["client"])
    header = jwt.get_unverified_header(text)
    more = {"typ": TYPE, "x5c": header["x5c"]}
    theirs = jwt.encode(said, portal.key, algorithm="EdDSA", headers=more)
    assert verifier(site).verify(theirs).name == "lab"


@MANY
@given(payload=st.binary(max_size=200), kind=st.sampled_from(["a", "b+jwt"]))
def test_messages_come_back(payload: bytes, kind: str) -> None:
    key = Ed25519PrivateKey.generate()
    text = jws.sign(kind, payload, key)
    assert jws.parse(text, kind, "x").verify(key.public_key()) == payload
    with pytest.raises(SecurityError):
        jws.parse(text, "c", "x")
    with pytest.raises(SecurityError):
        jws.parse(text, kind, "x").verify(Ed25519PrivateKey.generate().public_key())
