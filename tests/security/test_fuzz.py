"""Outside bytes, mutated at random: parsers accept what was made, and refuse the rest as ours.

MPIDL_TEST_FUZZ says how many mutations each parser gets.
"""

from __future__ import annotations

import base64
import os
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning

from mpidl.errors import MpidlError
from mpidl.security import jws, requests
from mpidl.security.certificates import dump_chain, load_chain
from mpidl.security.policy import parse_policy
from mpidl.security.revocation import load_list
from mpidl.security.tokens import TokenVerifier, make_token
from tests.security.site import Site, now
from tests.security.test_commands import POLICY
from tests.security.test_tokens import HOUR

COUNT = int(os.environ.get("MPIDL_TEST_FUZZ", "200"))
Parser = Callable[[bytes], Any]


def mutate(content: bytes, source: random.Random) -> bytes:
    """A few changes of bits, bytes and pieces."""
    changed = bytearray(content)
    for _ in range(source.choice((1, 1, 2, 5))):
        place = source.randrange(len(changed) + 1)
        size = source.choice((1, 1, 2, 4, 16, 64))
        piece = changed[place : place + size]
        how = source.randrange(5)
        if how == 0 and piece:
            changed[place] ^= 1 << source.randrange(8)
        elif how == 1 and piece:
            changed[place] = source.choice((0, 1, 0x7F, 0x80, 0xFF, source.randrange(256)))
        elif how == 2:
            del changed[place : place + size]
        elif how == 3:
            changed[place:place] = source.choice((bytes(piece), source.randbytes(size)))
        else:
            start = source.randrange(len(changed) + 1)
            changed[place : place + size] = changed[start : start + size]
    return bytes(changed)


def pem(kind: str, der: bytes) -> bytes:
    """As OpenSSL writes it, so that what is mutated inside gets past the text around it."""
    text = base64.b64encode(der).decode()
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {kind}-----", *lines, f"-----END {kind}-----", ""]).encode()


def parsers(site: Site) -> dict[str, tuple[bytes, Parser]]:
    """What is parsed: bytes that are accepted, and the parser."""
    trust, verifier = site.trust(), TokenVerifier(site.trust(), "serve")
    ada, portal = site.identity("ada"), site.identity("portal")
    root = site.authority.root
    text = make_token(portal, "lab", "serve", ["client"], HOUR, now())
    request = requests.Keys.generate("person", submits=True).request("person", "eve")
    crl = (site.folder / "site" / "revoked.crl").read_bytes()
    head, body, _ = text.split(".")

    def chain(content: bytes) -> Any:
        return trust.verify(load_chain(content, "file"), "sign", now())

    def claims(content: bytes) -> Any:
        """Whatever the claims are, who may sign tokens has signed them."""
        signed = jws.sign("mpidl+jwt", content, portal.key, portal.chain)
        return verifier.verify(signed, now()).name

    def header(content: bytes) -> Any:
        signed = jws._encode(content) + "." + body
        return verifier.verify(f"{signed}.{jws._encode(portal.key.sign(signed.encode()))}", now())

    return {
        "certificates": (dump_chain(ada.chain), chain),
        "certificate": (
            ada.chain[0].public_bytes(Encoding.DER),
            lambda der: chain(pem("CERTIFICATE", der)),
        ),
        "list": (crl, lambda content: load_list(content, root, "file")),
        "list's content": (
            base64.b64decode(b"".join(crl.splitlines()[1:-1])),
            lambda der: load_list(pem("X509 CRL", der), root, "file"),
        ),
        "token": (text.encode(), lambda content: verifier.verify(content, now())),
        "header": (jws._decode(head.encode()), header),
        "claims": (jws._decode(body.encode()), claims),
        "request": (request.encode(), lambda content: requests.read_request(content, "file")),
        "policy": (POLICY.encode(), lambda content: parse_policy(content, "file")),
    }


# Parsers whose bytes are signed: nothing but what was made is accepted
SIGNED = {"certificates", "certificate", "list", "list's content", "token", "request"}
NAMES = [*sorted(SIGNED), "header", "claims", "policy"]


@pytest.mark.parametrize("name", NAMES)
def test_mutations_are_refused_as_ours(site: Site, name: str) -> None:
    content, parse = parsers(site)[name]
    parse(content)
    source = random.Random(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        for _ in range(COUNT):
            changed = mutate(content, source)
            try:
                parse(changed)
            except MpidlError as error:
                assert len(str(error)) < 2000
            else:
                same = changed.strip() == content.strip()
                assert name not in SIGNED or same, changed.hex()


def test_all_parsers_are_here(site: Site) -> None:
    assert set(parsers(site)) == set(NAMES)
