"""Signed messages: JSON Web Signatures (RFC 7515) in compact form, with Ed25519 only (RFC 8037).

What makes such formats dangerous is not left open: the algorithm is no choice of the sender, each
use has a type of its own that is part of what is signed, and a message has one spelling only (bits
of base64 that mean nothing must be 0). The key is found by the caller, never in the message; the
certificates in it (`x5c`) are believed only after `Trust.verify`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from mpidl.errors import SecurityError
from mpidl.security.certificates import MALFORMED, MOST_CERTIFICATES

MOST_BYTES = 16 << 10
REMEDY = "ask its sender for a new one"
_Encoded = Annotated[str, msgspec.Meta(max_length=8192)]


class Header(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The protected header: everything else in it is refused.

    Attributes:
        alg: Always EdDSA.
        typ: What the message is for.
        x5c: Certificates of the signer, its own first, as DER in base64.
    """

    alg: Literal["EdDSA"]
    typ: Annotated[str, msgspec.Meta(max_length=64)]
    x5c: Annotated[list[_Encoded], msgspec.Meta(max_length=MOST_CERTIFICATES)] = []


@dataclass(frozen=True)
class Message:
    """A message that was taken apart; not verified.

    Attributes:
        header: Its header.
        payload: Its content.
        signed: The bytes that are signed.
        signature: 64 bytes.
        where: Whence it came, for messages.
    """

    header: Header
    payload: bytes
    signed: bytes
    signature: bytes
    where: str

    def verify(self, key: Ed25519PublicKey) -> bytes:
        """The payload, if the holder of a key has signed it.

        Raises:
            SecurityError: Somebody else did, or it was changed.
        """
        try:
            key.verify(self.signature, self.signed)
        except InvalidSignature as error:
            raise malformed(self.where) from error
        return self.payload

    def chain(self) -> tuple[x509.Certificate, ...]:
        """The certificates in the header, not validated.

        Raises:
            SecurityError: They are malformed.
        """
        try:
            found = [base64.b64decode(text, validate=True) for text in self.header.x5c]
            return tuple(map(x509.load_der_x509_certificate, found))
        except MALFORMED as error:
            raise malformed(self.where) from error


def malformed(where: str) -> SecurityError:
    """The one error of messages that are malformed, changed, or signed by somebody else."""
    return SecurityError("is malformed, or its signature is wrong", where=where, remedy=REMEDY)


def sign(
    kind: str, payload: bytes, key: Ed25519PrivateKey, chain: Sequence[x509.Certificate] = ()
) -> str:
    """Sign a message.

    Args:
        kind: What it is for (`typ`).
        payload: Its content.
        key: Of the signer.
        chain: The signer's certificates, if they travel with it.
    """
    certificates = [base64.b64encode(each.public_bytes(Encoding.DER)).decode() for each in chain]
    header = msgspec.json.encode(Header("EdDSA", kind, certificates))
    signed = _encode(header) + "." + _encode(payload)
    return signed + "." + _encode(key.sign(signed.encode()))


def parse(text: str | bytes, kind: str, where: str) -> Message:
    """Take a message apart.

    Args:
        text: From outside; nothing is assumed of it.
        kind: What it must be for.
        where: Whence it came, for messages.

    Raises:
        SecurityError: It is malformed, too large, or for something else.
    """
    raw = text.encode("utf-8", "replace") if isinstance(text, str) else text
    parts = raw.split(b".") if len(raw) <= MOST_BYTES else []
    if len(parts) != 3:
        raise malformed(where)
    try:
        head, payload, signature = map(_decode, parts)
        header = msgspec.json.decode(head, type=Header)
    except (ValueError, RecursionError) as error:  # msgspec's and binascii's are ValueErrors
        raise malformed(where) from error
    if header.typ != kind or len(signature) != 64:
        raise malformed(where)
    return Message(header, payload, parts[0] + b"." + parts[1], signature, where)


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _decode(text: bytes) -> bytes:
    """Base64url without padding, in its one canonical spelling.

    Raises:
        ValueError: It is spelled otherwise.
    """
    content = base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    if _encode(content).encode() != text:
        raise binascii.Error("not canonical")
    return content
